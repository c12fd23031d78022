"""The KV cache of an ONNX decoder and the call that fills it, for both kinds of graph.

Cells are not copied by Python: the outputs of one call are bound as inputs of the next,
or both are the same buffer. Tokens are the drafter's ids; contexts are handled by
`kv_prefix`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgecs.engines.onnx.graph import Graph, check_rows
from edgecs.engines.onnx.watchdog import Watch

Ids = NDArray[np.int64]
Logits = NDArray[Any]  # [n, width], float32 or float16


class Cells(Protocol):
    """Cells 0, 1, 2, ... of a decoder."""

    def run(self, tokens: Ids) -> Logits:
        """Compute cells for `tokens` after the existing ones; returns their logits.

        The logits are a view that is valid until the next call.
        """

    def drop(self, length: int) -> int:
        """Drop the cells from `length` on; returns how many are left."""

    def compact(self) -> None:
        """Free the memory of dropped cells, if they use any."""


class _Input(NamedTuple):
    name: str
    buffer: NDArray[Any]
    pointer: int  # stored, as numpy takes a microsecond to return it


class Call:
    """The inputs and outputs other than cells, in buffers that are bound in place.

    device: device of the cells; logits are always on the CPU. watch: ends a call that
    takes too long. most: most tokens in one call. span: cells that the attention mask
    can cover.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        graph: Graph,
        device: str,
        watch: Watch,
        *,
        most: int,
        span: int,
    ) -> None:
        self.session = session
        self.binding = session.io_binding()
        self.device = device
        self._watch = watch
        self._ids = _input(graph, "input_ids", most)
        self._mask = _input(graph, "attention_mask", span)
        self._positions = None
        if "position_ids" in graph.inputs:
            self._positions = _input(graph, "position_ids", most)
        self._count = np.arange(span, dtype=np.int64)
        width = graph.width or _measured_width(session, graph, watch)
        self._logits = np.empty((most, width), dtype=graph.logits)
        self._at = self._logits.ctypes.data
        self.mask = self._mask.buffer
        self.width = width

    @property
    def size(self) -> int:
        """Bytes of the rows of logits."""
        return self._logits.nbytes

    def run(self, tokens: Ids, position: int, span: int) -> Logits:
        """Run the graph on tokens at `position` and on, with `span` values of the mask.

        The cells must be bound.
        """
        n = tokens.size
        self._ids.buffer[:n] = tokens
        self._bind(self._ids, n)
        self._bind(self._mask, span)
        if self._positions is not None:
            self._positions.buffer[:n] = self._count[position : position + n]
            self._bind(self._positions, n)
        logits = self._logits[:n]
        self.binding.bind_output(
            "logits", "cpu", 0, logits.dtype.type, (1, n, self.width), self._at
        )
        self._watch(self._run)
        return logits

    def _run(self, options: ort.RunOptions) -> None:
        if self.device == "cpu":
            self.session.run_with_iobinding(self.binding, options)
            return
        self.binding.synchronize_inputs()
        self.session.run_with_iobinding(self.binding, options)
        self.binding.synchronize_outputs()

    def _bind(self, into: _Input, n: int) -> None:
        """Bind the first n values of a buffer; for a GPU, the binding copies them."""
        kind = into.buffer.dtype.type
        self.binding.bind_input(into.name, "cpu", 0, kind, (1, n), into.pointer)


class GrowingCells:
    """The plain export: inputs are past cells, outputs are past and new cells.

    Dropped cells are masked with 0, and positions continue from the remaining cells,
    until `window` is full; then dropped cells are removed. With masks=False they are
    removed at once, for graphs that ignore the mask.
    """

    def __init__(self, call: Call, graph: Graph, *, masks: bool) -> None:
        self._call = call
        self._graph = graph
        self._masks = masks
        self._slots = np.arange(call.mask.size)  # [cells]: where each of them lies
        self._live = self._used = 0
        self._past: list[ort.OrtValue] = []
        self.drop(0)

    def run(self, tokens: Ids) -> Logits:
        """See `Cells`."""
        if self._used + tokens.size > self._call.mask.size:
            self.compact()
        live, used, n = self._live, self._used, tokens.size
        binding = self._call.binding
        for cell, past in zip(self._graph.cells, self._past, strict=True):
            binding.bind_ortvalue_input(cell.past, past)
            binding.bind_output(cell.present, self._call.device)
        logits = self._call.run(tokens, live, used + n)
        # Bound in this order: the cells first, the logits last.
        self._past = binding.get_outputs()[:-1]
        self._slots[live : live + n] = np.arange(used, used + n)
        self._live, self._used = live + n, used + n
        return logits

    def drop(self, length: int) -> int:
        """See `Cells`."""
        if not length:
            self._set(np.empty(0, dtype=np.int64))
        elif self._masks:
            self._call.mask[self._slots[length : self._live]] = 0
            self._live = length
        else:
            self._live = length
            self.compact()
        return length

    def compact(self) -> None:
        """Remove dropped cells by moving the live ones together."""
        self._set(self._slots[: self._live].copy())

    def _set(self, slots: NDArray[np.int64]) -> None:
        """Keep only the cells at these slots, moved to 0, 1, 2, ..."""
        past = []
        for i, cell in enumerate(self._graph.cells):
            if slots.size:
                cells = np.take(self._past[i].numpy(), slots, axis=2)
            else:
                cells = np.empty((1, cell.heads, 0, cell.size), dtype=cell.dtype)
            past.append(ort.OrtValue.ortvalue_from_numpy(cells, self._call.device, 0))
        self._past = past
        self._live = self._used = slots.size
        self._slots[: slots.size] = np.arange(slots.size)
        self._call.mask[:] = 1


class SharedCells:
    """Past and present share a buffer: graphs with a fused GroupQueryAttention.

    The length of the attention mask is the number of valid cells, so dropping cells
    only changes a counter.
    """

    def __init__(self, call: Call, graph: Graph) -> None:
        self._call = call
        self._live = 0
        self._buffers = []  # bound below, for as long as the binding is used
        for cell in graph.cells:
            shape = (1, cell.heads, call.mask.size, cell.size)
            zeros = np.zeros(shape, dtype=cell.dtype)
            buffer = ort.OrtValue.ortvalue_from_numpy(zeros, call.device, 0)
            call.binding.bind_ortvalue_input(cell.past, buffer)
            call.binding.bind_ortvalue_output(cell.present, buffer)
            self._buffers.append(buffer)

    def run(self, tokens: Ids) -> Logits:
        """See `Cells`."""
        total = self._live + tokens.size
        logits = self._call.run(tokens, self._live, total)
        self._live = total
        return logits

    def drop(self, length: int) -> int:
        """See `Cells`."""
        self._live = length
        return length

    def compact(self) -> None:
        """Do nothing: dropped cells use no extra memory."""


def forgets(cells: Cells, width: int, room: int) -> bool:
    """Whether dropped cells have no effect: logits are the same with and without them.

    Both sides use the same calls, because logits of a graph with quantised activations
    depend on the other tokens of a call.
    """
    ids = np.arange(room, dtype=np.int64) % width
    start, after, stale = ids[:3], ids[3:4], ids[4:]

    def answer(*before: Ids) -> Logits:
        cells.drop(0)
        cells.run(start)
        for tokens in before:
            cells.run(tokens)
            cells.drop(start.size)
        first = cells.run(after).astype(np.float32)
        cells.compact()  # detects new cells in unexpected places
        return np.concatenate([first, cells.run(after).astype(np.float32)])

    clean, used = answer(), answer(stale, after)
    cells.drop(0)
    return bool(np.abs(used - clean).max() <= 0.05 * clean.std())


def _input(graph: Graph, name: str, size: int) -> _Input:
    buffer = np.ones(size, dtype=graph.inputs[name])
    return _Input(name, buffer, buffer.ctypes.data)


def _measured_width(session: ort.InferenceSession, graph: Graph, watch: Watch) -> int:
    feeds: dict[str, NDArray[Any]] = {
        name: np.ones((1, 1), dtype=kind) for name, kind in graph.inputs.items()
    }
    for cell in graph.cells:
        feeds[cell.past] = np.empty((1, cell.heads, 0, cell.size), dtype=cell.dtype)
    (logits,) = watch(partial(session.run, ["logits"], feeds))
    check_rows(logits.shape)
    return int(logits.shape[-1])
