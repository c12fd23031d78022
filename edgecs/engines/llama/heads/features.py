"""States that a target computes for every token of a call, recorded for a head."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Protocol

import llama_cpp as lib
import numpy as np

from edgecs.engines.hidden_states import State
from edgecs.engines.llama.heads.experimental import symbols

# chosen: 2,700 tokens of an EAGLE-3 head for states of width 4096.
_MOST_BYTES = 128 << 20  # of recorded states
# chosen: as many as other states are kept.
_LEAST = 1024  # tokens whose states are kept at least


class Features(Protocol):
    """Rows for the tokens of the last call."""

    width: int

    def start(self) -> None:
        """Have llama.cpp compute them in the next calls."""

    def stop(self) -> None:
        """Have llama.cpp leave them out."""

    def rows(self, first: int, count: int) -> State:
        """Those of tokens of the last call, in the batch's order, [count, width]."""


class LayerInputs:
    """The inputs of some layers, side by side.

    layers: counted from 0. width: of the target's embeddings. last: the number that
    stands for the state after the last layer, see `fit.WITH_LAST`; -1: none does. The
    logits are the same, bit for bit. llama.cpp aborts for an architecture without these
    hooks, see `fit.HOOKED`.
    """

    def __init__(
        self,
        context: lib.llama_context_p,
        layers: Sequence[int],
        width: int,
        last: int = -1,
    ) -> None:
        self.width = width * len(layers)
        self._context, self._layers, self._each = context, layers, width
        self._last = NextStates(context, width)
        self._at_last = last

    def start(self) -> None:
        """Have llama.cpp compute them in the next calls."""
        self._switch(True)

    def stop(self) -> None:
        """Have llama.cpp leave them out."""
        self._switch(False)

    def _switch(self, on: bool) -> None:
        for layer in self._layers:
            if layer != self._at_last:
                symbols().set_layer(self._context, layer, on)
            elif on:
                self._last.start()
            else:
                self._last.stop()

    def rows(self, first: int, count: int) -> State:
        """Those of tokens of the last call, [count, width]."""
        found = np.empty((count, self.width), dtype=np.float32)
        for i, layer in enumerate(self._layers):
            if layer == self._at_last:
                rows = self._last.rows(first, count)
            else:
                at = symbols().layer(self._context, layer)
                rows = view(at, first + count, self._each)[first:]
            found[:, i * self._each : (i + 1) * self._each] = rows
        return found


class NextStates:
    """The states that MTP heads read; the final ones, of most architectures.

    width: of a state. With rows of output tokens only, llama.cpp would compute the last
    layer for these alone, and other bits.
    """

    def __init__(self, context: lib.llama_context_p, width: int) -> None:
        self.width = width
        self._context = context

    def start(self) -> None:
        """Have llama.cpp compute them in the next calls."""
        symbols().set_next(self._context, True, False)

    def stop(self) -> None:
        """Have llama.cpp leave them out."""
        symbols().set_next(self._context, False, False)

    def rows(self, first: int, count: int) -> State:
        """Those of tokens of the last call, [count, width]."""
        at = symbols().next(self._context)
        return view(at, first + count, self.width)[first:]


def view(address: int | None, rows: int, width: int) -> State:
    """Rows in llama.cpp's memory, [rows, width], valid until the next call."""
    if not address:
        raise MemoryError("llama.cpp returned no rows")
    floats = ctypes.c_float * (rows * width)
    return np.ctypeslib.as_array(floats.from_address(address)).reshape(rows, width)


def states_kept(width: int, n_ctx: int) -> int:
    """How many states of this width are kept, of a context of n_ctx tokens."""
    return min(n_ctx, max(_LEAST, _MOST_BYTES // (4 * width)))
