"""The tokens of one llama.cpp call, in memory that is reused between calls.

`llama_batch_init` allocates a small array of sequence ids for every token; here they
are rows of one array, so that a whole call is written with a few slices.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp as lib
import numpy as np


class Batch:
    """A `llama_batch` of at most `size` tokens, each in at most `most_ids` sequences.

    sole: the sequence id, if there is only one.
    """

    def __init__(
        self, size: int, most_ids: int = 1, *, sole: int | None = None
    ) -> None:
        self._tokens = np.zeros(size, dtype=np.int32)
        self._positions = np.zeros(size, dtype=np.int32)
        self._flags = np.zeros(size, dtype=np.int8)
        self._counts = np.ones(size, dtype=np.int32)
        self._ids = np.full((size, most_ids), sole or 0, dtype=np.int32)
        at = self._ids.ctypes.data + self._ids.strides[0] * np.arange(size)
        self._rows = at.astype(np.uintp)  # address of the ids of every token
        self._sole = sole  # the value of all ids, None after another one was written
        self._flagged = 0, 0  # range of the tokens with output rows
        self._count = np.arange(1 << 10, dtype=np.int32)
        struct: Any = lib.llama_batch()
        ints = ctypes.POINTER(ctypes.c_int32)
        struct.token = ctypes.cast(self._tokens.ctypes.data, ints)
        struct.pos = ctypes.cast(self._positions.ctypes.data, ints)
        struct.n_seq_id = ctypes.cast(self._counts.ctypes.data, ints)
        rows = ctypes.cast(self._rows.ctypes.data, ctypes.POINTER(ints))
        struct.seq_id = rows
        flags = ctypes.POINTER(ctypes.c_int8)
        struct.logits = ctypes.cast(self._flags.ctypes.data, flags)
        self.struct: lib.llama_batch = struct

    def __len__(self) -> int:
        return int(self.struct.n_tokens)

    def chain(
        self, tokens: Sequence[int], start: int, rows: int, sequence: int
    ) -> None:
        """Set the batch to tokens of one sequence at positions from `start` on.

        The last `rows` of them have output rows.
        """
        n = len(tokens)
        first = n - rows
        if n == 1:  # a slice takes several times as long
            self._tokens[0], self._positions[0] = tokens[0], start
        else:
            self._tokens[:n] = tokens
            self._positions[:n] = self._counted(start, n)
        if self._flagged != (first, n):
            self._flags[:first] = 0
            self._flags[first:n] = 1
            self.struct.n_tokens = n
            self._flagged = first, n
        if self._sole != sequence:
            self._counts[:n] = 1
            self._ids[:n, 0] = sequence
            self._sole = None

    def clear(self) -> None:
        """Remove all tokens, for `add`."""
        self.struct.n_tokens = 0
        self._flagged = 0, 0
        self._sole = None

    def add(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        ids: Sequence[Sequence[int]],
        rows: int,
        padding: int = 0,
    ) -> int:
        """Append tokens, each with the sequences that it belongs to.

        The last `padding` tokens are padding; the `rows` tokens before them have output
        rows. Returns the index of the first token with an output row.
        """
        start, n = len(self), len(tokens)
        end = start + n
        self._tokens[start:end] = tokens
        self._positions[start:end] = positions
        self._flags[start:end] = 0
        last = end - padding
        self._flags[last - rows : last] = 1
        for i, own in enumerate(ids, start):
            self._counts[i] = len(own)
            self._ids[i, : len(own)] = own
        self.struct.n_tokens = end
        return last - rows

    def _counted(
        self, start: int, n: int
    ) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """start, start + 1, ..."""
        if start + n > self._count.size:
            self._count = np.arange(2 * (start + n), dtype=np.int32)
        return self._count[start : start + n]
