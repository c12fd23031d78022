"""Folders that are there only when they are full."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def whole_folder(out: Path, fill: Callable[[Path], None]) -> Path:
    """Makes a folder under another name, fills it, and gives it its own.

    A run that is cut short leaves nothing at `out`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        fill(half)
        half.chmod(0o755)  # mkdtemp makes folders for one user
        half.rename(out)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return out
