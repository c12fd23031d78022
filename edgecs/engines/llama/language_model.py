"""A llama.cpp context as a `LanguageModel`: tokens in, rows of logits out, in one call.

It uses the low-level API: one preallocated batch for all sequences, logits only for the
requested rows, and cells beyond the common prefix are removed before a call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress

import llama_cpp as lib
import numpy as np
import psutil
from numpy.typing import NDArray

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import NOTHING, Request, Rows, no_sequence
from edgecs.engines.hidden_states import States
from edgecs.engines.host import usable_cores
from edgecs.engines.kv_snapshot import KVSnapshot
from edgecs.engines.llama.calls import Calls, Form
from edgecs.engines.llama.checkpoints import Rollback
from edgecs.engines.llama.contexts import (
    copy_cost,
    decode_error,
    kept_by,
    no_room_to_pack,
    open_context,
)
from edgecs.engines.llama.feed import NO_ROWS, Feed, Logits, groups
from edgecs.engines.llama.heads.features import Features, states_kept
from edgecs.engines.llama.kernels import Nodes
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.llama.output_rows import OutputRows
from edgecs.engines.llama.scratch_kv import Layout, repeated
from edgecs.engines.llama.sequence import LlamaSequence
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import Cancelled, ContextFull, ModelError

_REAL = 32  # cells that are computed, and then repeated for measuring
_LARGEST_STATE = 1 << 29  # bytes
# chosen: the copy takes a hundredth of the time of the tokens between.
_EVERY = 4  # prefill chunks between two checkpoints
# chosen: several of a small model; those of larger ones have an eighth of its weights.
_CHECKPOINTS = 512 << 20  # bytes of all checkpoints
# chosen: reading fewer tokens again costs little more than a call.
_READ_ALONE = 16  # tokens of a text after which a recurrent drafter has a checkpoint


class LlamaLM:
    """Scores drafts with a GGUF model. The model must outlive it.

    No bit of a target's cells may depend on earlier drafts or on text read before. A
    request with more than one context token to compute therefore computes them without
    the draft, in chunks that end at multiples of n_batch, and the last row is copied. A
    later request for the same context, such as a regenerated answer, uses that copy;
    another context continues from the end of a chunk or of a turn, or from any token if
    the model is `uniform`.

    drafts_for: vocabulary size of the target, for a drafter. Its rows are cut or padded
    (with -inf) to that size. exact: if False, as for a drafter, rows may depend on how
    the text is split into calls, and as many tokens as fit are computed in one call.
    """

    rewindable = True  # with checkpoints, see `Rollback`

    def __init__(
        self,
        model: LlamaModel,
        options: LoadOptions,
        cancel: threading.Event,
        *,
        drafts_for: int | None = None,
        exact: bool = True,
    ) -> None:
        self._model, self.options = model, options
        self.vocab_size = drafts_for or model.vocabulary.size
        self.exact = exact and drafts_for is None
        self.sequences, self.max_leaves = options.sequences, options.leaves
        self.n_ctx = options.n_ctx or model.default_ctx(options)
        if not self.exact:  # beyond that a drafter's proposals are useless
            self.n_ctx = min(self.n_ctx, model.trained_ctx)
        self.max_draft = min(options.max_draft, self.n_ctx - 1)
        self._drafts = drafts_for is not None
        self.copy_cost = copy_cost(model, options, self.n_ctx)
        self.cancel = cancel
        self.threads = options.threads or usable_cores()
        packed = model.packed
        self._nodes = Nodes(packed, self.threads) if packed else None
        self._chunk = options.n_batch
        self._ctx: lib.llama_context_p | None = open_context(
            *(model, options, self.n_ctx, self.threads, self._nodes),
            keeps_states=self.exact or self._drafts,
        )
        self._keeps, self._windowed, self.steady = kept_by(self._ctx, model, self.n_ctx)
        self.snapshots = self._keeps.snapshots if self._keeps.recurrent else None
        output = OutputRows(model.vocabulary.size, self.vocab_size)
        pads = self.max_leaves == 1 and self._keeps.all
        form = Form(self.width, self.n_ctx, pads, self._drafts)
        check = model.check_workers if model.workers else None
        self.calls = Calls(
            *(self._ctx, options, self.threads, self._nodes, output, form), check=check
        )
        self.on_read: Callable[[int, int], None] | None = None  # tokens read, of all
        self.gives_states = False
        if self._nodes:
            self._pack()
        self._sequences = [self._sequence(self._ctx, i) for i in range(self.sequences)]

    def _sequence(self, context: lib.llama_context_p, number: int) -> LlamaSequence:
        first = number * self.max_leaves
        # If rows depend on how a text is split into calls, it is always split alike.
        marks = self.exact and not self.uniform
        name = self._model.path.name
        return LlamaSequence(
            context,
            range(first, first + self.max_leaves),
            sole=self.sequences == 1,
            marks=marks,
            rollback=Rollback(
                context,
                first,
                self._keeps,
                max(_CHECKPOINTS, self._model.size // 8) // self.sequences,
                writes=self._drafts,
                each=not self._model.offload.layers,
            ),
            name=name if self.sequences == 1 else f"sequence {number} of {name}",
        )

    @property
    def uniform(self) -> bool:
        """Whether a row's bits are independent of width, depth and prompt chunks.

        They are if edgecs' kernels compute every product and all attention, because
        their arithmetic is the same for any number of rows.
        """
        if self._nodes is None or not self._keeps.all:
            # llama.cpp computes recurrences, and reuses cells of a window in an order
            # that depends on how many tokens the calls had.
            return False
        if self.max_leaves > 1:
            return False  # the cells of an accepted path may not be contiguous
        return not self._nodes.counts.left

    def note_states(self, sequence: int = 0) -> States:
        """Record the final states of cells in every call for a draft from now on.

        They are in the returned rows too. Calls that read a prompt do not record them,
        because llama.cpp would make an output row of every token. The logits are the
        same, bit for bit.
        """
        self.gives_states = True
        one = self._sequences[sequence]
        if one.states is None:
            one.states = States(self.width)
        return one.states

    def record(self, features: Features, sequence: int = 0) -> States:
        """Record rows of all computed tokens from now on, those of prompts too."""
        features.start()
        states = States(features.width, states_kept(features.width, self.n_ctx))
        self._sequences[sequence].recorded.append((features, states))
        return states

    def stop_recording(self, states: States, sequence: int = 0) -> None:
        """End a `record`; other ones continue."""
        one = self._sequences[sequence]
        if self._ctx is not None:
            for features, _ in one.recorded:
                features.stop()
        one.recorded = [pair for pair in one.recorded if pair[1] is not states]
        if self._ctx is not None:
            # Those of other sequences may be the same rows of llama.cpp.
            for other in self._sequences:
                for features, _ in other.recorded:
                    features.start()

    def settle(self, context: Context, sequence: int = 0) -> None:
        """Remove cells after a committed context, for a head that reads cells.

        They are those of a rejected draft, and would be removed in the next call.
        """
        if self._ctx is not None and len(context):
            one = self._sequences[sequence]
            kept = one.cache.keep(context, len(context) - 1)
            for _, states in one.recorded:
                states.adopt(context, kept)
            self._compute_again(Request(context, NOTHING, sequence), one, kept)

    @property
    def handle(self) -> lib.llama_context_p:
        """The llama.cpp context, for a head that shares its weights."""
        assert self._ctx is not None
        return self._ctx

    @property
    def model(self) -> LlamaModel:
        """Its weights."""
        return self._model

    @property
    def width(self) -> int:
        """Width of a hidden state."""
        return int(lib.llama_model_n_embd_out(self._model.handle))

    def _pack(self) -> None:
        """Pack the weights that the kernels need, by computing a token."""
        packed, name = self._model.packed, self._model.path.name
        assert packed is not None
        if not packed.size:  # an earlier context may have packed them
            free = psutil.virtual_memory().available
            if free < self._model.size:
                raise no_room_to_pack(name, f"{free >> 20} MiB are free")
        code = self.calls.pack()
        if packed.failed:
            self.close()
            if self.cancel.is_set():
                raise Cancelled(f"stopped while loading {name}")
            raise no_room_to_pack(name, "an allocation failed")
        if code:
            raise decode_error(code)
        lib.llama_memory_clear(lib.llama_get_memory(self._ctx), True)

    def score(self, requests: Sequence[Request]) -> list[Rows]:
        """Logits after the context and every draft node, see `LanguageModel`."""
        feeds = [self._prepared(request) for request in requests]
        if len(feeds) == 1:
            return [self._rows(feeds[0], *self._decode(feeds)[0])]
        if len({request.sequence for request in requests}) < len(requests):
            raise ModelError("a call takes one request per sequence, this one has two")
        # A prompt without a draft was computed by `_prepared`: no tokens are left.
        found = {
            feed.request.sequence: self._rows(feed, NO_ROWS, None)
            for feed in feeds
            if not len(feed)
        }
        left = [feed for feed in feeds if len(feed)]
        together = [*groups(left, self._chunk, padded=self.calls.pads)]
        for group in together:
            for feed, (logits, hidden) in zip(group, self._decode(group), strict=True):
                if len(together) > 1:  # the next call overwrites them
                    logits = logits.copy()
                    hidden = None if hidden is None else hidden.copy()
                found[feed.request.sequence] = self._rows(feed, logits, hidden)
        return [found[request.sequence] for request in requests]

    def end_turn(self, context: Context, sequence: int = 0) -> None:
        """Cut the cells to one token less than the context, see `LanguageModel`."""
        if len(context) and self._ctx is not None:
            one = self._sequences[sequence]
            kept = one.cache.keep(context, len(context) - 1)
            with suppress(Cancelled):
                self._compute_again(Request(context, NOTHING, sequence), one, kept)
            one.rollback.save(len(one.cache))
            if one.prompt_row is None or one.prompt_row[0] < len(context):
                one.cache.mark()  # a prompt without an answer is not a turn

    def forget(self, sequence: int) -> None:
        """Drop all cells of a sequence, see `LanguageModel`."""
        self._sequences[sequence].reset(self._ctx is not None)

    def reset(self) -> None:
        """Drop all cells, as if just loaded."""
        for one in self._sequences:
            one.reset(self._ctx is not None)

    def reusable(
        self, tokens: Tokens, sequence: int = 0, *, copied: bool = False
    ) -> int:
        """How many first tokens of a prompt a sequence saves, see `LanguageModel`."""
        if self._ctx is None or (copied and self.copy_cost is None):
            return 0
        return self._sequences[sequence].cache.reusable(tokens, copied=copied)

    def copy(self, source: int, target: int, length: int) -> bool:
        """Copy the first cells of a sequence to another, see `LanguageModel`."""
        if self._ctx is None or self.copy_cost is None or source == target:
            return False
        self.calls.copying = True
        return self._sequences[target].receive(self._sequences[source], length)

    @property
    def keeps_prefixes(self) -> bool:
        """Whether a prefix of a snapshot can be used after `restore`."""
        return self._model.rewindable and not self._model.swa

    def snapshot(self, sequence: int = 0) -> KVSnapshot | None:
        """The cells of a sequence, for `restore`; None if it has none.

        There are none either if a worker that held some was lost.
        """
        one = self._sequences[sequence]
        if self._ctx is None or not len(one.cache):
            return None
        one.cache.trim(len(one.cache))
        self._finish_copies()
        saved = one.prompt_row
        row = saved and (saved[0], saved[1].copy())
        cells = KVSnapshot(one.cache.tokens, one.state(), row)
        return None if self._model.is_lost else cells

    def restore(self, cells: KVSnapshot, sequence: int = 0) -> bool:
        """Replace the cells of a sequence by a snapshot.

        Returns False if llama.cpp rejects it; the sequence then has no cells.
        """
        one = self._sequences[sequence]
        if self._ctx is not None:
            self._finish_copies()
        one.reset(self._ctx is not None)
        if len(cells.tokens) > self.n_ctx:
            return False
        one.cache.expect()
        if not one.put(cells.data, len(cells.tokens)):
            one.reset(self._ctx is not None)
            return False
        one.cache.reset_to(cells.tokens, whole=not self.keeps_prefixes)
        one.rollback.save(len(one.cache))
        if cells.row and cells.row[1].shape == (self.vocab_size,):
            one.prompt_row = cells.row
        return True

    def _finish_copies(self) -> None:
        """Have llama.cpp make the copies that it puts off until the next call."""
        if not self.calls.copying:
            return
        one = min(self._sequences, key=lambda one: len(one.cache))
        one.cache.expect()
        code = self.calls.copy(one)
        if code:
            raise decode_error(code)
        one.cache.trim(len(one.cache))

    def pretend(self, context: Context) -> bool:
        """Fill the cells of a context for measuring, see `probe.Measurable`.

        Returns False if llama.cpp rejects the cells, or if they are too many; all cells
        are dropped then.
        """
        self.reset()
        one = self._sequences[0]
        self._prefill(Request(context), one, context.tokens[:_REAL].tolist())
        if len(one.cache) >= len(context):
            one.cache.mark()
            return True
        if one.state_size * len(context) / _REAL <= _LARGEST_STATE:
            with suppress(ValueError):  # unknown layout
                state = repeated(one.state(), len(context), self._layout())
                if one.put(state, len(context)):
                    one.cache.reset_to(context.tokens.tolist())
                    one.rollback.save(len(context))
                    return True
        self.reset()
        return False

    @property
    def restoring(self) -> float:
        """Seconds that restoring a state of the first sequence takes; 0: not known."""
        return self._sequences[0].rollback.restoring

    def rewind(self, context: Context) -> None:
        """Drop the cells that a call for this context cannot use, ahead of the call."""
        one = self._sequences[0]
        one.cache.keep(context, len(context) - 1)

    def _layout(self) -> Layout:
        """The parts of a sequence's state."""
        model = self._model
        windows = (model.window,) if self._windowed else ()
        caches = (0, *windows) if model.attends else ()
        return Layout(caches, model.has_places, recurrent=not model.rewindable)

    def hold(self, sequence: int = 0) -> AbstractContextManager[None]:
        """Claim a sequence; raises ModelError for a second holder."""
        if not 0 <= sequence < self.sequences:
            raise ModelError(no_sequence(sequence, self.sequences))
        return self._sequences[sequence].holder.hold()

    def close(self) -> None:
        """Free context and batch; may be called again."""
        if self._ctx is not None:
            lib.llama_free(self._ctx)
            self._ctx = None
            self.calls.close()
            if self._nodes:
                self._nodes.free()

    def _checked(self, request: Request) -> LlamaSequence:
        context, draft, number, _ = request
        if self._ctx is None:
            raise ModelError("this model was closed: load it again")
        if not 0 <= number < self.sequences:
            raise ModelError(no_sequence(number, self.sequences))
        if not draft.is_chain and len(draft.leaves) > self.max_leaves:
            raise ModelError(
                f"a draft of {len(draft.leaves)} leaves exceeds the {self.max_leaves} "
                "that this model was loaded for"
            )
        if not len(context):
            raise ModelError("an empty context has no next token: give a prompt")
        if len(context) + len(draft) > self.n_ctx:
            raise ContextFull(
                f"{len(context)} tokens and a draft of {len(draft)} do not fit a "
                f"context of {self.n_ctx}: give a larger one (-c)"
            )
        if len(draft) > self.max_draft:
            raise ModelError(
                f"a draft of {len(draft)} tokens exceeds the {self.max_draft} that one "
                "call can verify"
            )
        return self._sequences[number]

    def _prepared(self, request: Request) -> Feed:
        """Drop cells of another text, and read a prompt that needs its own calls."""
        one, context = self._checked(request), request.context
        saved = one.prompt_row
        again = saved is not None and saved[0] == len(context)
        most = len(context) - (not again)
        kept = one.cache.keep(context, most, also=len(context) if again else 0)
        for _, states in one.recorded:
            states.adopt(context, kept)
        if saved and kept < saved[0]:
            saved = one.prompt_row = None
        if 0 < kept == len(context) - 1:  # most calls
            return Feed(request, one, [context.last], 1)
        lost = one.cache.lost if saved else 0
        if 0 < lost < self._chunk and kept + lost == len(context) - 1:
            if not len(request.draft):
                return Feed(request, one, context.tokens[kept:].tolist(), 1 + lost)
            self._compute_again(request, one, kept)
            return Feed(request, one, [context.last], 1 + lost)
        if lost:
            kept += self._compute_again(request, one, kept)
        pending = context.tokens[kept:].tolist()
        if not self.exact:
            room = min(len(pending), self._chunk - len(request.draft))
            final = context.committed - kept
            if self._drafts and self._keeps.recurrent and final > _READ_ALONE:
                # A rejected draft, or another answer, returns to the end of the text.
                room = min(room, len(pending) - final + 1)
            if len(pending) > room:
                self._prefill(request, one, pending[:-room])
            return Feed(request, one, pending[-room:], len(pending))
        if pending:
            row = self._prefill(request, one, pending)
            saved = one.prompt_row = len(context), row
        assert saved is not None
        return Feed(request, one, [], len(pending), saved[1])

    def _compute_again(self, request: Request, one: LlamaSequence, kept: int) -> int:
        """Compute the cells of an answer that were lost with a rejected draft.

        Returns how many. They are not those of a prompt, so no text continues there.
        """
        lost = one.cache.lost
        for start in range(kept, kept + lost, self._chunk):
            if self._cancelled(request):
                raise Cancelled("stopped while computing rejected cells again")
            end = min(start + self._chunk, kept + lost)
            pending = request.context.tokens[start:end].tolist()
            self._decode(
                [Feed(request._replace(draft=NOTHING), one, pending, 0)], reads=True
            )
        return lost

    def _prefill(
        self, request: Request, one: LlamaSequence, pending: list[int]
    ) -> NDArray[np.float32]:
        """Compute tokens of a context in chunks; returns a copy of the last row."""
        start, request = 0, request._replace(draft=NOTHING)
        while start < len(pending):
            if start and self._cancelled(request):
                raise Cancelled("stopped while reading the prompt")
            if self.on_read:
                self.on_read(start, len(pending))
            size = self._chunk - len(one.cache) % self._chunk
            chunk = pending[start : start + size]
            rows, _ = self._decode([Feed(request, one, chunk, 0)], reads=True)[0]
            if len(chunk) == size:
                one.cache.mark(size)
                if not len(one.cache) % (_EVERY * self._chunk):
                    one.rollback.save(len(one.cache))
            start += size
        one.rollback.save(len(one.cache))
        if self.on_read:
            self.on_read(len(pending), len(pending))
        return np.array(rows[0])

    def _cancelled(self, request: Request) -> bool:
        own = request.cancel
        return self.cancel.is_set() or (own is not None and own.is_set())

    def _rows(self, feed: Feed, logits: Logits, hidden: Logits | None) -> Rows:
        """The whole answer to a request."""
        fed = feed.read + len(feed.request.draft)
        if feed.row is None:
            return Rows(logits, fed, hidden)
        first = feed.row[None]
        return Rows(np.concatenate([first, logits]) if len(logits) else first, fed)

    def _decode(
        self, group: Sequence[Feed], *, reads: bool = False
    ) -> list[tuple[Logits, Logits | None]]:
        """Compute some requests in one call; reads: they are prompts, see `Calls`."""
        noted = self.gives_states and not (reads or group[0].is_prompt)
        return self.calls.decode(group, states=noted)
