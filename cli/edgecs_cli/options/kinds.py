"""Kinds of values that options take: numbers, layers, output files."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any, cast

import click

from edgecs.core.reading import regular_size
from edgecs.engines.load_options import GpuLayers


class GpuLayersType(click.ParamType[GpuLayers]):
    """A number of layers, `auto` or `all`."""

    name = "N|auto|all"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> GpuLayers:
        """Checks a value of -ngl."""
        if value in ("auto", "all") or isinstance(value, int):
            return value  # type: ignore[no-any-return]
        text = str(value)
        if not (text.isascii() and text.isdigit()):
            self.fail(f"{value!r} is not a number >= 0, 'auto' or 'all'", param, ctx)
        return int(text)


class Finite(click.FloatRange):
    """A finite number in a range; click alone accepts `nan` in every range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Checks a value."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


RESULT, PAGE = (b'{"format": "edgecs', b'{\n  "format": "edgecs'), b"<!DOCTYPE html>"
"""First bytes of the files that `edgecs bench` writes."""
_HEAD = 64  # bytes read to recognise a file
_OTHERS = "the file exists, and edgecs did not write it"


class OutputFile(click.Path):
    """An output file, checked before the work starts.

    in_place: an existing file is written to, not replaced by a new one. begins: first
    bytes of files that may be replaced; any other file is refused. The check creates
    nothing.
    """

    def __init__(self, *begins: bytes, in_place: bool = False) -> None:
        super().__init__(path_type=Path, readable=False)
        self.name = "file"
        self._begins, self._in_place = begins, in_place

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Checks a path."""
        path = cast(Path, super().convert(value, param, ctx))
        try:
            self._check(path)
        except OSError as error:
            why = f"{path} cannot be written: {error.strerror}"
            self.fail(f"{why}; give another path", param, ctx)
        return path

    def _check(self, path: Path) -> None:
        """Raises OSError."""
        folder, there = path.parent, path.exists()
        folder.stat()
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if there and regular_size(path) and self._begins:
            with path.open("rb") as file:
                if not file.read(_HEAD).startswith(self._begins):
                    raise FileExistsError(errno.EEXIST, _OTHERS)
        if not os.access(path if there and self._in_place else folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
