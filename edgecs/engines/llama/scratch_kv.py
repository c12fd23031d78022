"""Scratch KV cells: a long context made of copies of a short one, without computing it.

The time of a call, and whether its bits depend on its width, depend on the number of
cells, not on their values. Cells for measuring are therefore written by loading a saved
state into llama.cpp in which the cells of a few real tokens are repeated.

The layout is that of `llama_state_seq_get_data` in the llama.cpp that this release of
the bindings pins: magic, version, streams, cells; position and sequence of every cell;
then all K rows and all V rows of every layer. Any other layout is rejected.
"""

from __future__ import annotations

import struct

_SEQUENCE = 0


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

    @property
    def done(self) -> bool:
        return self._at == len(self._data)


def repeated(state: bytes, cells: int) -> bytes:
    """The state of a sequence with `cells` cells, positions 0 and up.

    The cells of `state` are repeated as often as needed. Raises ValueError if the state
    has another layout.
    """
    read = _Reader(state)
    parts = [read.take(8)]
    if read.number("I") != 1:
        raise ValueError("the state has more than one stream")
    given = read.number("I")
    if not given:
        raise ValueError("the state has no cells")
    for position in range(given):
        if struct.unpack("<iIi", read.take(12)) != (position, 1, _SEQUENCE):
            raise ValueError(f"cell {position} of the state has another position")
    parts.append(struct.pack("<II", 1, cells))
    parts += [struct.pack("<iIi", i, 1, _SEQUENCE) for i in range(cells)]
    transposed, layers = read.number("I"), read.number("I")
    parts.append(struct.pack("<II", transposed, layers))
    for _ in range(layers):
        parts += _rows(read, given, cells)
    for _ in range(layers):
        parts += (
            _columns(read, given, cells) if transposed else _rows(read, given, cells)
        )
    if not read.done:
        raise ValueError("the state has data after its last layer")
    return b"".join(parts)


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
