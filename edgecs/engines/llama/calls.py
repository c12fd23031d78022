"""The calls of a llama.cpp context: `llama_decode` for one request, or for several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import llama_cpp as lib

from edgecs.engines.llama import library
from edgecs.engines.llama.batch import Batch
from edgecs.engines.llama.contexts import decode_error
from edgecs.engines.llama.feed import NO_ROWS, Feed, Logits
from edgecs.engines.llama.kernels import Nodes
from edgecs.engines.llama.output_rows import OutputRows
from edgecs.engines.llama.sequence import LlamaSequence
from edgecs.engines.llama.threads import thread_pool
from edgecs.engines.load_options import LoadOptions

_ALONE = (0,)  # no padding


class Form(NamedTuple):
    """What the calls of a model have in common.

    width: of a hidden state. cells: of a sequence. pads: whether requests of unequal
    widths are padded. drafts: whether it is a drafter, which is asked for what follows
    a draft, so that only the committed tokens of a context are certain to stay.
    """

    width: int
    cells: int
    pads: bool
    drafts: bool


class Calls:
    """A batch, the threads that compute it, and the rows that come out.

    The context is freed by its owner, after `close`. nodes: those that edgecs' kernels
    compute. check: raises WorkerError after a call in which a worker was lost.
    """

    def __init__(
        self,
        context: lib.llama_context_p,
        options: LoadOptions,
        threads: int,
        nodes: Nodes | None,
        output: OutputRows,
        form: Form,
        *,
        check: Callable[[], None] | None = None,
    ) -> None:
        self._ctx, self._nodes, self._form = context, nodes, form
        self.output, self.pads = output, form.pads
        self._check = check
        self.copying = False  # whether llama.cpp has copies of cells left to do
        self._pool = thread_pool(context, threads, strict=options.cpu_strict)
        self._on_cores = self._pool or nullcontext()
        sole = 0 if options.sequences == options.leaves == 1 else None
        self._batch = Batch(options.n_batch, options.leaves, sole=sole)
        self._giving_states = False  # current setting of llama.cpp

    def close(self) -> None:
        """Free the threads."""
        if self._pool is not None:
            self._pool.free()

    def decode(
        self, group: Sequence[Feed], *, states: bool
    ) -> list[tuple[Logits, Logits | None]]:
        """Compute the remaining tokens of some requests in one call.

        states: whether hidden states are wanted. Returns logits and states of every
        request, of its last context token, if that is computed, and of its draft:
        [rows, ...] each, views into llama.cpp's output buffers.
        """
        if not len(group[0]):
            return [(NO_ROWS, None)]
        if self._giving_states is not states:
            lib.llama_set_embeddings(self._ctx, states)
            self._giving_states = states
        paddings = self._paddings(group)
        firsts = self._fill(group, paddings)
        for feed in group:
            feed.sequence.cache.expect()
            context = feed.request.context
            final = context.committed if self._form.drafts else len(context)
            cells = len(feed.sequence.cache)
            feed.sequence.rollback.begin(cells, len(feed), final)
        code, address = self.call(firsts[0])
        if code:
            raise decode_error(code)
        found: list[tuple[Logits, Logits | None]] = []
        for feed, first, padding in zip(group, firsts, paddings, strict=True):
            if found:
                address = library.logits_address(self._ctx, first)
            logits = self.output.logits(address, feed.rows, several=len(group) > 1)
            hidden = None
            if states:
                at = library.states_address(self._ctx, first)
                hidden = self.output.view(at, feed.rows, self._form.width)
            if feed.sequence.recorded:
                feed.record(first)
            feed.computed(hidden)
            feed.sequence.rollback.done(len(feed))
            if padding:
                feed.sequence.drop_padding()
            found.append((logits, hidden))
        return found

    def pack(self) -> int:
        """Compute a token, in a context that has no cells; returns llama.cpp's code.

        The kernels pack the weights that they meet. It is no call of an answer.
        """
        self._batch.chain([0], 0, 1, 0)
        with self._on_cores:
            return int(lib.llama_decode(self._ctx, self._batch.struct))

    def copy(self, sequence: LlamaSequence) -> int:
        """Have llama.cpp make the copies of cells that it has left to do.

        Returns its code. The sequence gets a cell after those that it has.
        """
        self._batch.chain([0], len(sequence.cache), 1, sequence.id)
        code, _ = self.call(0)
        return code

    def call(self, first: int) -> tuple[int, int]:
        """The target call: all time outside of it is overhead of edgecs.

        Returns llama.cpp's code, and the address of the rows from token `first` on.
        """
        with self._on_cores:
            code = lib.llama_decode(self._ctx, self._batch.struct)
            address = 0
            if not code:
                self.copying = False
                # Requesting the rows waits for the call to end.
                address = library.logits_address(self._ctx, first)
        if self._check:
            self._check()
        if code and self._nodes:
            self._nodes.forget()
        return code, address

    def _paddings(self, group: Sequence[Feed]) -> Sequence[int]:
        """Number of padding tokens of every request of a group.

        llama.cpp computes streams of cells together only as far as they have equally
        many tokens, and reads all weights again for the rest. Padding pays unless it
        more than doubles the tokens (`python -m edgecs_bench.joint`: 1.5B, Q4_K_M, Zen
        4: widths 4+1 take 55 ms padded, 72 without; 4+1+1+1 take 98 and 76).
        """
        if len(group) == 1:  # most calls
            return _ALONE
        widest = max(map(len, group))
        wasteful = widest * len(group) > 2 * sum(map(len, group))
        if not self.pads or wasteful or group[0].is_prompt:
            return [0] * len(group)
        cells = self._form.cells
        return [
            max(0, min(widest - len(feed), cells - len(feed.sequence.cache)))
            for feed in group
        ]

    def _fill(self, group: Sequence[Feed], paddings: Sequence[int]) -> list[int]:
        """Write the batch; returns the index of the first row of every request."""
        if len(group) == 1 and group[0].request.draft.is_chain:
            feed = group[0]
            start, own = len(feed.sequence.cache), feed.sequence.id
            self._batch.chain(feed.tokens(), start, feed.rows, own)
            return [len(feed) - feed.rows]
        self._batch.clear()
        return [
            self._batch.add(*feed.nodes(padding), feed.rows, padding)
            for feed, padding in zip(group, paddings, strict=True)
        ]
