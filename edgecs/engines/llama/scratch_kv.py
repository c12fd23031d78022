"""Scratch KV cells: a long context made of copies of a short one, without computing it.

The time of a call, and whether its bits depend on its width, depend on the number of
cells, not on their values. Cells for measuring are therefore written by loading a saved
state into llama.cpp in which the cells of a few real tokens are repeated.

The layout is that of `llama_state_seq_get_data` in the llama.cpp that this release of
the bindings pins: magic, version, streams, cells; position and sequence of every cell;
then all K rows and all V rows of every layer. Windowed layers have a cache of their
own, and recurrent layers a state of one position. Any other layout is rejected.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_SEQUENCE = 0
_PLACE = 12  # bytes of a cell's place in an image, and of its token


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        part = self._data[self._at : self._at + size]
        if len(part) != size:
            raise ValueError("the state ends early")
        self._at += size
        return part

    def number(self, kind: str) -> int:
        return int(struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)))[0])

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    @property
    def done(self) -> bool:
        return self._at == len(self._data)


class Layout(NamedTuple):
    """The parts of a state, in their order.

    caches: cells that each cache has at most, the last ones of the text; 0: no limit.
    placed: whether a cell also has the position of an image's part (M-RoPE). recurrent:
    whether the state of recurrent layers follows.
    """

    caches: tuple[int, ...] = (0,)
    placed: bool = False
    recurrent: bool = False


_PLAIN = Layout()


def repeated(state: bytes, cells: int, layout: Layout = _PLAIN) -> bytes:
    """The state of a sequence with `cells` cells, positions 0 and up.

    The cells of `state` are repeated as often as needed; a recurrent state is that of
    the last one. Raises ValueError if the state has another layout.
    """
    read = _Reader(state)
    parts = [read.take(8)]
    for most in layout.caches:
        parts += _cache(read, cells, min(cells, most or cells), layout.placed)
    if layout.recurrent:
        parts += _recurrent(read, cells)
    if not read.done:
        raise ValueError("the state has data after its last layer")
    return b"".join(parts)


def _cache(read: _Reader, end: int, cells: int, placed: bool) -> list[bytes]:
    """The last `cells` of `end` cells."""
    if read.number("I") != 1:
        raise ValueError("the state has more than one stream")
    given = read.number("I")
    if not given:
        raise ValueError("the state has no cells")
    tokens = list[bytes]()
    for position in range(given):
        found = struct.unpack("<iI", read.take(8))
        tokens.append(read.take(_PLACE if placed else 0)[-4:])
        if (*found, read.number("i")) != (position, 1, _SEQUENCE):
            raise ValueError(f"cell {position} of the state has another position")
    parts = [struct.pack("<II", 1, cells)]
    for i in range(end - cells, end):
        place = struct.pack("<ii", i, i) + tokens[i % given] if placed else b""
        parts.append(struct.pack("<iI", i, 1) + place + struct.pack("<i", _SEQUENCE))
    transposed, layers = read.number("I"), read.number("I")
    parts.append(struct.pack("<II", transposed, layers))
    for _ in range(layers):
        parts += _rows(read, given, cells)
    for _ in range(layers):
        parts += (
            _columns(read, given, cells) if transposed else _rows(read, given, cells)
        )
    return parts


def _recurrent(read: _Reader, cells: int) -> list[bytes]:
    """The recurrent state of the only sequence, at another position."""
    if read.number("I") != 1:
        raise ValueError("the state is not that of one sequence")
    read.take(4)
    if read.number("I"):
        raise ValueError("the state of recurrent layers names a sequence")
    return [struct.pack("<IiI", 1, cells - 1, 0), read.rest()]


def _rows(read: _Reader, given: int, cells: int) -> list[bytes]:
    """Type, size of a row, one row for each cell."""
    kind = read.take(4)
    size = read.take(8)
    row = struct.unpack("<Q", size)[0]
    return [kind, size, _resize(read.take(row * given), row * cells)]


def _columns(read: _Reader, given: int, cells: int) -> list[bytes]:
    """V without flash attention: type, size of an element, columns of all cells."""
    head = read.take(12)
    _, element, width = struct.unpack("<iII", head)
    if not element or not width:
        raise ValueError("the state has columns without a size")
    columns = [
        _resize(read.take(element * given), element * cells) for _ in range(width)
    ]
    return [head, *columns]


def _resize(data: bytes, size: int) -> bytes:
    return (data * -(-size // len(data)))[:size] if data else b""
