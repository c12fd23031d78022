"""Folders that are created atomically."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from edgecs.core.files import part_of, sweep


def whole_folder(out: Path, fill: Callable[[Path], None]) -> Path:
    """Creates a folder under a temporary name, fills it, and renames it.

    An interrupted run leaves nothing at `out`. Leftovers of a killed run are removed
    when the folder is made the next time.
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
