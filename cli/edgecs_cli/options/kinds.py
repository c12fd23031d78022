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

_DIGITS = 9  # of a number of layers


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
        if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
            raise WrongValue("0 or more, 'auto' or 'all'", value, param, ctx)
        return int(text)


class WrongValue(click.BadParameter):
    """A value that an option does not take. wanted: what it takes."""

    def __init__(
        self,
        wanted: str,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> None:
        super().__init__(f"must be {wanted}, got {value!r:.80}", ctx, param)

    def format_message(self) -> str:
        """The sentence, which click would begin in its own way."""
        if self.param is None:
            return self.message
        names = "/".join(self.param.opts) or self.param.human_readable_name
        return f"{names} {self.message}"


class Whole(click.IntRange):
    """A whole number in a range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Checks a value."""
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            wanted = f"a whole number {_range(self)}"
            raise WrongValue(wanted, value, param, ctx) from None


class AnyWhole(click.types.IntParamType):
    """A whole number."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Checks a value."""
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            raise WrongValue("a whole number", value, param, ctx) from None


class Finite(click.FloatRange):
    """A finite number in a range; click alone accepts `nan` in every range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Checks a value."""
        wanted = f"a finite number {_range(self)}"
        try:
            return _finite(super().convert(value, param, ctx))
        except (click.BadParameter, OverflowError):
            raise WrongValue(wanted, value, param, ctx) from None


class AnyFinite(click.types.FloatParamType):
    """A finite number."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Checks a value."""
        try:
            return _finite(super().convert(value, param, ctx))
        except (click.BadParameter, OverflowError):
            raise WrongValue("a finite number", value, param, ctx) from None


def _finite(number: Any) -> float:
    """Raises OverflowError for infinity and NaN."""
    if not math.isfinite(number):
        raise OverflowError
    return float(number)


def _range(kind: click.IntRange | click.FloatRange) -> str:
    """The range of a number in words."""
    least = None if kind.min is None else f"{kind.min:.10g}"
    most = None if kind.max is None else f"{kind.max:.10g}"
    if isinstance(kind, click.IntRange):
        least, most = (None if n is None else str(n) for n in (kind.min, kind.max))
    if least is not None and most is not None and not (kind.min_open or kind.max_open):
        return f"from {least} to {most}"
    lower = f"{'greater than' if kind.min_open else 'of at least'} {least}"
    upper = f"{'less than' if kind.max_open else 'of at most'} {most}"
    parts = [lower] * (least is not None) + [upper] * (most is not None)
    return " and ".join(parts)


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
