"""The numbers in a GGUF's header, arrays included, without reading the whole file.

llama.cpp gives the metadata of a loaded model, but no arrays, and a file that is not
loaded has none. A header may be damaged or malicious, so every length is checked.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import NamedTuple

_MAGIC = b"GGUF"
_KINDS = "BbHhIif?"  # formats of the types 0 to 7
_STRING, _ARRAY = 8, 9
_WIDE = {10: "Q", 11: "q", 12: "d"}
_MOST = 1 << 20  # keys of a header
_LONGEST = 1024  # numbers of an array that is kept; a number for each layer is shorter

_ARCHITECTURE = b"general.architecture"


class Header(NamedTuple):
    """The family of a model, and its numbers and short arrays of numbers by key."""

    architecture: str
    numbers: dict[str, list[float]]


def read_header(path: Path) -> Header:
    """The header of a file.

    Raises OSError, or ValueError if this is not a valid header.
    """
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise ValueError(f"{path} is empty") from error
        with mapped:
            try:
                return _Reader(mapped).header()
            except struct.error as error:
                raise ValueError(f"the header of {path} ends early") from error


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def header(self) -> Header:
        if self._data[:4] != _MAGIC:
            raise ValueError("this is not a GGUF file")
        self._at = 4
        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"version {version} of the format is unknown")
        self._number("Q")
        count = self._number("Q")
        if count > _MOST:
            raise ValueError(f"{count} keys are too many")
        found, architecture = dict[str, list[float]](), ""
        for _ in range(int(count)):
            key, kind = self._text(), int(self._number("I"))
            if key == _ARCHITECTURE and kind == _STRING:
                architecture = self._text().decode(errors="replace")
                continue
            values = self._value(kind)
            if values and all(map(math.isfinite, values)):
                found[key.decode(errors="replace")] = values
        return Header(architecture, found)

    def _value(self, kind: int) -> list[float]:
        """The numbers of a value; empty: they are none, or too many."""
        if kind == _STRING:
            self._text()
            return []
        if kind != _ARRAY:
            return [self._number(_format(kind))]
        inner, count = int(self._number("I")), int(self._number("Q"))
        if inner == _STRING:
            if count > len(self._data):
                raise ValueError(f"an array of {count} texts does not fit the file")
            for _ in range(count):
                self._text()
            return []
        packed = f"<{count}{_format(inner)}"
        start = self._skip(count * struct.calcsize(f"<{_format(inner)}"))
        if count > _LONGEST:
            return []
        return [float(value) for value in struct.unpack_from(packed, self._data, start)]

    def _text(self) -> bytes:
        size = int(self._number("Q"))
        start = self._skip(size)
        return self._data[start : start + size]

    def _number(self, kind: str) -> float:
        """A number; integers of up to 53 bits are exact."""
        (value,) = struct.unpack_from(f"<{kind}", self._data, self._at)
        self._at += struct.calcsize(f"<{kind}")
        return value if kind != "?" else float(value)

    def _skip(self, size: int) -> int:
        """Move on by `size` bytes; returns where they start."""
        start = self._at
        if size > len(self._data) - start:
            raise ValueError("a value reaches beyond the end of the file")
        self._at += size
        return start


def _format(kind: int) -> str:
    if 0 <= kind < len(_KINDS):
        return _KINDS[kind]
    if kind in _WIDE:
        return _WIDE[kind]
    raise ValueError(f"values of type {kind} are unknown")
