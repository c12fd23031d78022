"""Folders that are there only when they are full."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from edgecs.core.files import part_of, sweep


def whole_folder(out: Path, fill: Callable[[Path], None]) -> Path:
    """Makes a folder under another name, fills it, and gives it its own.

    A run that is cut short leaves nothing at `out`. What a killed one left beside it
    goes when it is made the next time.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep(out.parent, out.name)
    half = part_of(out)
    half.mkdir(0o700)
    try:
        fill(half)
        half.chmod(0o755)
        half.rename(out)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return out
