"""A llama.cpp context as a `LanguageModel`: tokens in, rows of logits out, in one call.

On the low-level API: one preallocated batch, logits only for the rows that are asked
for, cells beyond the common prefix removed before a call.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import llama_cpp as lib
import numpy as np
import psutil
from numpy.typing import NDArray

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import Draft, Rows
from edgecs.engines.hidden_states import States
from edgecs.engines.host import usable_cores
from edgecs.engines.kv_prefix import PrefixCache
from edgecs.engines.kv_snapshot import Cells
from edgecs.engines.lease import OneHolder
from edgecs.engines.llama import library
from edgecs.engines.llama.huge_pages import HugePages
from edgecs.engines.llama.kernels import Nodes
from edgecs.engines.llama.model import KV_TYPES, LlamaModel
from edgecs.engines.llama.scratch_kv import repeated
from edgecs.engines.llama.threads import thread_pool
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import Cancelled, ContextFull, EdgecsError, ModelError, OutOfMemory

_SEQUENCE = 0
_REAL = 32  # cells that are computed before they are repeated for measuring
_LARGEST_STATE = 1 << 29  # bytes
_FLASH = {
    "auto": lib.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": lib.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


class LlamaLM:
    """Scores drafts with a GGUF model. The model must outlive it.

    A target must not let any bit of its cache depend on what was drafted, or on what
    was read before. So a call that has more than one context token to compute is a
    prefill: chunks without the draft that end at multiples of n_batch, and whose last
    row is copied. A later call for the very same context, such as a regenerated answer,
    takes that copy; another context goes on from the end of a chunk or of a turn, or
    from any token where it is `uniform`.

    drafts_for: vocabulary size of the target, for a drafter. Its rows are cut or filled
    (with -inf) to that size, and few context tokens and a draft go in one call.
    """

    def __init__(
        self,
        model: LlamaModel,
        options: LoadOptions,
        cancel: threading.Event,
        *,
        drafts_for: int | None = None,
    ) -> None:
        self.vocab_size = drafts_for or model.vocabulary.size
        self.drafts = drafts_for is not None
        self.n_ctx = options.n_ctx or model.default_ctx(options)
        if self.drafts:  # beyond what it was trained for a drafter has nothing to say
            self.n_ctx = min(self.n_ctx, model.trained_ctx)
        self.max_draft = min(options.max_draft, self.n_ctx - 1)
        self.rewindable = model.rewindable
        self.cancel = cancel
        self.threads = options.threads or usable_cores()
        self._model, packed = model, model.packed
        self._nodes = Nodes(packed, self.threads) if packed else None
        self._holder = OneHolder(model.path.name)
        self._chunk = options.n_batch
        self._ctx: lib.llama_context_p | None = self._open(options)
        strict = options.cpu_strict
        self._pool = thread_pool(self._ctx, self.threads, strict=strict)
        self._on_cores = self._pool or nullcontext()
        self._memory = lib.llama_get_memory(self._ctx)
        self._batch = lib.llama_batch_init(options.n_batch, 0, 1)
        self._tokens, self._positions, self._flags = self._batch_arrays(options.n_batch)
        self._flagged = 0, 0  # which tokens of the batch give rows: from, to
        self._count = np.arange(self.n_ctx, dtype=np.int32)
        self._wraps: dict[tuple[int, int, int], NDArray[np.float32]] = {}
        self._row_size = model.vocabulary.size
        self._filled = np.empty((0, 0), dtype=np.float32)
        if self._row_size < self.vocab_size:
            shape = (self.max_draft + 1, self.vocab_size)
            self._filled = np.full(shape, -np.inf, dtype=np.float32)
        self._prefill_row: tuple[int, NDArray[np.float32]] | None = None
        self.on_read: Callable[[int, int], None] | None = None  # tokens read, of all
        self.states: States | None = None
        self._gives_states = False  # whether the next call would
        if self._nodes:
            self._pack()
        # Where rows depend on how a text was cut into calls, it is cut alike each time.
        marks = not (self.drafts or self.uniform)
        self._cache = PrefixCache(self._drop, marks=marks)

    @property
    def uniform(self) -> bool:
        """Whether a row's bits depend on no width, no depth and no cut of the prompt.

        They do not where edgecs's kernels compute every product and all attention:
        their arithmetic is the same for any number of rows.
        """
        if self._nodes is None or not self._model.rewindable:
            return False  # recurrences are computed by llama.cpp
        return not self._nodes.counts.left

    def note_states(self) -> States:
        """From now on every call for a draft notes the final states of its cells.

        Reading a prompt does not, because llama.cpp would make an output row of every
        token. The logits are the same, bit for bit.
        """
        if self.states is None:
            self.states = States(int(lib.llama_model_n_embd_out(self._model.handle)))
        return self.states

    def _pack(self) -> None:
        """Has the weights packed that the kernels will need, by computing a token."""
        packed = self._model.packed
        assert packed is not None
        if not packed.size:  # a context before may have done it
            free = psutil.virtual_memory().available
            if free < self._model.size:
                raise self._no_room_to_pack(f"{free >> 20} MiB are free")
        self._tokens[0] = self._positions[0] = 0
        self._flags[0] = self._batch.n_tokens = 1
        with self._on_cores:
            code = lib.llama_decode(self._ctx, self._batch)
        if packed.failed:
            self.close()
            if self.cancel.is_set():
                raise Cancelled(f"stopped while loading {self._model.path.name}")
            raise self._no_room_to_pack("the system gives no more")
        if code:
            raise self._decode_error(code)
        self._flagged = 0, 1
        lib.llama_memory_clear(self._memory, True)

    def _no_room_to_pack(self, why: str) -> OutOfMemory:
        return OutOfMemory(
            f"the weights of {self._model.path.name} laid out for edgecs's kernels do "
            f"not fit into memory ({why}): use llama.cpp's (--kernels llama) or a "
            "smaller quantisation"
        )

    def _open(self, options: LoadOptions) -> lib.llama_context_p:
        params = lib.llama_context_default_params()
        if self._nodes:
            self._nodes.enter(params)
        params.n_ctx = self.n_ctx
        params.n_batch = params.n_ubatch = options.n_batch
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = _FLASH[options.flash_attention]
        params.type_k = KV_TYPES[options.type_k]
        params.type_v = KV_TYPES[options.type_v]
        library.clear_log()
        if not self._model.kv_fits(self.n_ctx, options):
            raise self._does_not_fit()
        pages = HugePages(options.huge_pages)
        context = lib.llama_init_from_model(self._model.handle, params)
        if context is None:
            raise self._open_error()
        pages.collapse()  # its cells are in use already: llama.cpp has cleared them
        return cast(lib.llama_context_p, context)

    def _open_error(self) -> EdgecsError:
        said = library.logged_errors()
        if any("alloc" in line or "memory" in line for line in said) or not said:
            return self._does_not_fit()
        return ModelError(f"llama.cpp cannot open a context: {said[-1]}")

    def _does_not_fit(self) -> OutOfMemory:
        return OutOfMemory(
            f"a context of {self.n_ctx} tokens does not fit into memory: give a "
            "smaller one (-c), a quantised KV cache (-ctk q8_0 -ctv q8_0) or fewer GPU "
            "layers (-ngl)"
        )

    def _batch_arrays(
        self, size: int
    ) -> tuple[Tokens, NDArray[np.int32], NDArray[np.int8]]:
        """The batch's C arrays as numpy views; all tokens belong to one sequence."""
        batch = self._batch
        for i in range(size):
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = _SEQUENCE
        return (
            np.ctypeslib.as_array(batch.token, (size,)),
            np.ctypeslib.as_array(batch.pos, (size,)),
            np.ctypeslib.as_array(batch.logits, (size,)),
        )

    def score(self, context: Context, draft: Draft) -> Rows:
        """Logits after the context and after every draft token, see `LanguageModel`."""
        self._check(context, draft)
        saved = self._prefill_row
        again = saved is not None and saved[0] == len(context)
        most = len(context) - (not again)
        kept = self._cache.keep(context, most, also=len(context) if again else 0)
        if saved and kept < saved[0]:
            saved = self._prefill_row = None
        if 0 < kept == len(context) - 1 and not len(draft):  # most calls
            return Rows(self._decode(context, [context.last], 1), 1)
        pending = context.tokens[kept:].tolist()
        fed, rows = len(pending) + len(draft), 1 + len(draft)
        together = 1 if not self.drafts else self._chunk - len(draft)
        if 1 <= len(pending) <= together and kept:
            feed = pending + draft.tokens.tolist()
            return Rows(self._decode(context, feed, rows), fed)
        if pending:
            saved = self._prefill_row = (len(context), self._prefill(context, pending))
        assert saved is not None
        first = saved[1][None]
        if not len(draft):
            return Rows(first, fed)
        rest = self._decode(context, draft.tokens.tolist(), len(draft))
        return Rows(np.concatenate([first, rest]), fed)

    def end_turn(self, context: Context) -> None:
        """Cuts the cache to one token short of the context, see `LanguageModel`."""
        if len(context) and self._ctx is not None:
            self._cache.keep(context, len(context) - 1)
            if self._prefill_row is None or self._prefill_row[0] < len(context):
                self._cache.mark()  # a prompt without an answer is no turn

    def reset(self) -> None:
        """Forgets everything, as if just loaded."""
        if self._ctx is not None:
            self._cache.reset()
        self._prefill_row = None

    def cells(self) -> Cells | None:
        """Everything that is computed, to be given back to `take`; None: nothing."""
        tokens = self._cache.tokens
        if self._ctx is None or not tokens:
            return None
        size = lib.llama_state_seq_get_size(self._ctx, _SEQUENCE)
        data = (ctypes.c_uint8 * size)()
        lib.llama_state_seq_get_data(self._ctx, data, size, _SEQUENCE)
        saved = self._prefill_row
        return Cells(tokens, bytes(data), saved and (saved[0], saved[1].copy()))

    def take(self, cells: Cells) -> bool:
        """Has what `cells` gave, instead of what there is now.

        False where llama.cpp does not take it; then there is nothing.
        """
        self.reset()
        if len(cells.tokens) > self.n_ctx:
            return False
        self._cache.expect()
        if not self._put(cells.data, len(cells.tokens)):
            self.reset()
            return False
        self._cache.reset_to(cells.tokens)
        if cells.row and cells.row[1].shape == (self.vocab_size,):
            self._prefill_row = cells.row
        return True

    def pretend(self, context: Context) -> bool:
        """Fills the cells of a context for measuring, see `probe.Measurable`.

        False where llama.cpp does not take the cells, or where they are too many; then
        there are none.
        """
        self.reset()
        self._prefill(context, context.tokens[:_REAL].tolist())
        if len(self._cache) >= len(context):
            self._cache.mark()
            return True
        size = lib.llama_state_seq_get_size(self._ctx, _SEQUENCE)
        if size * len(context) / _REAL <= _LARGEST_STATE:
            given = (ctypes.c_uint8 * size)()
            lib.llama_state_seq_get_data(self._ctx, given, size, _SEQUENCE)
            if self._restore(bytes(given), len(context)):
                self._cache.reset_to(context.tokens.tolist())
                return True
        self.reset()
        return False

    def _restore(self, given: bytes, cells: int) -> bool:
        """Whether llama.cpp took the cells of `given` repeatedly."""
        try:
            state = repeated(given, cells)
        except ValueError:
            return False
        return self._put(state, cells)

    def _put(self, state: bytes, cells: int) -> bool:
        """Whether llama.cpp took a state of so many cells."""
        data = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        taken = lib.llama_state_seq_set_data(self._ctx, data, len(state), _SEQUENCE)
        last = lib.llama_memory_seq_pos_max(self._memory, _SEQUENCE)
        return bool(taken == len(state) and last == cells - 1)

    def hold(self) -> AbstractContextManager[None]:
        """Claims the model; a second holder gets a ModelError."""
        return self._holder.hold()

    def close(self) -> None:
        """Frees context and batch; may be called again."""
        if self._ctx is not None:
            lib.llama_batch_free(self._batch)
            lib.llama_free(self._ctx)
            self._ctx = None
            if self._pool is not None:
                self._pool.free()
            if self._nodes:
                self._nodes.free()

    def _check(self, context: Context, draft: Draft) -> None:
        if self._ctx is None:
            raise ModelError("this model was closed: load it again")
        if not draft.is_chain:
            raise ModelError("llama.cpp targets take chains; this draft is a tree")
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

    def _prefill(self, context: Context, pending: list[int]) -> NDArray[np.float32]:
        """Computes the end of a context in chunks; returns a copy of its last row."""
        start = 0
        while start < len(pending):
            if start and self.cancel.is_set():
                raise Cancelled("stopped while reading the prompt")
            if self.on_read:
                self.on_read(start, len(pending))
            size = self._chunk - len(self._cache) % self._chunk
            chunk = pending[start : start + size]
            rows = self._decode(context, chunk, 1, reads=True)
            if len(chunk) == size:
                self._cache.mark()
            start += size
        if self.on_read:
            self.on_read(len(pending), len(pending))
        return np.array(rows[0])

    def _decode(
        self, context: Context, tokens: list[int], rows: int, *, reads: bool = False
    ) -> NDArray[np.float32]:
        """Computes `tokens` after the cells that are there, which are of a context.

        reads: a prompt, whose states nobody wants. Returns the logits of the last
        `rows` tokens, [rows, vocabulary], a view into llama.cpp's output buffer.
        """
        n, start = len(tokens), len(self._cache)
        states = None if reads else self.states
        if self._gives_states is (states is None):
            lib.llama_set_embeddings(self._ctx, states is not None)
            self._gives_states = states is not None
        first = n - rows
        if n == 1:  # a slice takes several times as long
            self._tokens[0], self._positions[0] = tokens[0], start
        else:
            self._tokens[:n] = tokens
            self._positions[:n] = self._count[start : start + n]
        if self._flagged != (first, n):
            self._flags[:first] = 0
            self._flags[first:n] = 1
            self._batch.n_tokens = n
            self._flagged = first, n
        self._cache.expect()
        code, address = self._call(first)
        if code:
            raise self._decode_error(code)
        self._cache.extend(tokens, context)
        if states is not None:
            at = library.states_address(self._ctx, first)
            kept = self._wrapped(at, rows, states.width, states.width)
            states.put(context, start + first, kept)
        return self._logits(address, rows)

    def _logits(self, address: int, rows: int) -> NDArray[np.float32]:
        """Output rows in the size of the target's vocabulary."""
        logits = self._wrapped(address, rows, self._row_size, self.vocab_size)
        if self._filled.size:
            self._filled[:rows, : self._row_size] = logits
            return self._filled[:rows]
        return logits

    def _wrapped(
        self, address: int, rows: int, width: int, columns: int
    ) -> NDArray[np.float32]:
        """Columns of llama.cpp's rows; wrapping memory is slow, so wraps are kept."""
        key = address, rows, width
        wrap = self._wraps.get(key)
        if wrap is None:
            floats = ctypes.c_float * (rows * width)
            wrap = np.ctypeslib.as_array(floats.from_address(address))
            wrap = wrap.reshape(rows, width)[:, :columns]
            self._wraps[key] = wrap
        return wrap

    def _call(self, first: int) -> tuple[int, int]:
        """The target call: everything outside it is edgecs' own time.

        llama.cpp's code, and where the rows from token `first` of the batch on are.
        """
        with self._on_cores:
            code = lib.llama_decode(self._ctx, self._batch)
            if code:
                if self._nodes:
                    self._nodes.forget()
                return code, 0
            # Asking for rows waits for the call to end.
            return 0, library.logits_address(self._ctx, first)

    def _drop(self, length: int) -> bool:
        if self.states is not None:
            self.states.cut(length)
        if length:
            return bool(lib.llama_memory_seq_rm(self._memory, _SEQUENCE, length, -1))
        lib.llama_memory_clear(self._memory, False)
        return True

    def _decode_error(self, code: int) -> EdgecsError:
        said = library.logged_errors()
        why = said[-1] if said else "no reason given"
        if code == 1:
            return ContextFull(f"no room in the KV cache for the next tokens: {why}")
        if code == -2:
            return OutOfMemory(f"llama.cpp ran out of memory while decoding: {why}")
        return ModelError(f"llama.cpp could not decode (code {code}): {why}")
