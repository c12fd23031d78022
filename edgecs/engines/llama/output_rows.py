"""llama.cpp's output rows as arrays, without copies."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from edgecs.engines.llama.feed import NO_ROWS, Logits

_WRAPS = 4096  # chosen: numpy views that are kept


class OutputRows:
    """The output rows of one context.

    row_size: logits of a row. vocab_size: those that are returned; they are padded with
    -inf if there are more.
    """

    def __init__(self, row_size: int, vocab_size: int) -> None:
        self._row_size, self._vocab_size = row_size, vocab_size
        self._wraps: dict[tuple[int, int, int], NDArray[np.float32]] = {}
        self._filled = NO_ROWS

    def logits(self, address: int, rows: int, *, several: bool) -> Logits:
        """Logits, [rows, vocab_size], valid until the next call.

        several: whether other rows of the same call are returned separately.
        """
        logits = self.view(address, rows, self._row_size)
        if self._row_size >= self._vocab_size:
            return logits[:, : self._vocab_size]
        if several or len(self._filled) < rows:
            shape = rows, self._vocab_size
            self._filled = np.full(shape, -np.inf, dtype=np.float32)
        self._filled[:rows, : self._row_size] = logits
        return self._filled[:rows]

    def view(self, address: int, rows: int, width: int) -> NDArray[np.float32]:
        """Memory of llama.cpp, [rows, width]; wrapping is slow, so wraps are cached."""
        key = address, rows, width
        wrap = self._wraps.get(key)
        if wrap is None:
            if len(self._wraps) >= _WRAPS:
                self._wraps.clear()
            floats = ctypes.c_float * (rows * width)
            wrap = np.ctypeslib.as_array(floats.from_address(address))
            wrap = wrap.reshape(rows, width)
            self._wraps[key] = wrap
        return wrap
