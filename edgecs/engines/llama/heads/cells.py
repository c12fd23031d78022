"""A llama.cpp context whose tokens come with states, as a head needs them."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from typing import Any, cast

import llama_cpp as lib
import numpy as np

from edgecs.core.context import Tokens
from edgecs.engines.hidden_states import State
from edgecs.engines.llama import library
from edgecs.engines.llama.heads.experimental import symbols
from edgecs.engines.llama.heads.features import view
from edgecs.engines.llama.kernels import Nodes
from edgecs.engines.llama.model import FLASH_TYPES, KV_TYPES, LlamaModel
from edgecs.engines.llama.threads import thread_pool
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import EdgecsError, ModelError, OutOfMemory

# chosen: llama.cpp makes a row of logits for each, and for each token that it encodes.
CHUNK = 64  # tokens in a call


class HeadCells:
    """Computes cells from tokens and states, for one sequence.

    other: the context of the target, whose embeddings and output matrix a head may use;
    it must outlive this one. width: of a state. mtp: use the MTP heads of the model.
    like: options of the target, for a head that attends to its cells: they are laid out
    alike. Raises ModelError, OutOfMemory.
    """

    def __init__(
        self,
        model: LlamaModel,
        other: lib.llama_context_p,
        *,
        n_ctx: int,
        threads: int,
        width: int,
        strict: bool = True,
        mtp: bool = False,
        like: LoadOptions | None = None,
    ) -> None:
        functions = symbols()
        self.width = width
        self._model, self._vocabulary = model, model.vocabulary.size
        packed = model.packed
        self._nodes = Nodes(packed, threads) if packed else None
        params = lib.llama_context_default_params()
        if self._nodes:
            self._nodes.enter(params)
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, CHUNK, CHUNK
        params.n_threads = params.n_threads_batch = threads
        params.ctx_other = other
        if like:
            params.flash_attn_type = FLASH_TYPES[like.flash_attention]
            params.type_k, params.type_v = KV_TYPES[like.type_k], KV_TYPES[like.type_v]
        if mtp:
            params.ctx_type = lib.LLAMA_CONTEXT_TYPE_MTP
        library.clear_log()
        self._context = cast(
            lib.llama_context_p | None,
            lib.llama_init_from_model(model.handle, params),
        )
        if self._context is None:
            raise self._open_error()
        functions.set_next(self._context, True, True)
        self._memory = lib.llama_get_memory(self._context)
        self._pool = thread_pool(self._context, threads, strict=strict)
        self._on_cores = self._pool or nullcontext()
        self._positions = np.zeros(4 * CHUNK, dtype=np.int32)
        self._flags = np.zeros(CHUNK, dtype=np.int8)

    def encode(self, states: State, position: int) -> State:
        """The head's own states for those of its target, [n, width]; n <= CHUNK.

        position: of the next cell. No cell is computed, but llama.cpp checks it.
        """
        rows = np.ascontiguousarray(states, dtype=np.float32)
        count = len(rows)
        batch = self._batch(None, rows, position, output=True)
        self._call(lib.llama_encode, batch)
        return view(symbols().next(self._context), count, self.width).copy()

    def decode(
        self, tokens: Tokens, states: State, position: int, *, output: bool
    ) -> tuple[State, State] | None:
        """Compute cells; the logits and the state after the last token, [1, ...] each.

        tokens: int32 [n], n <= CHUNK. states: [n, width]. output: if False, nothing is
        returned. All tokens or none have an output row, because the graph of EAGLE-3
        computes a row for all and llama.cpp takes the first ones of them.
        """
        ids = np.ascontiguousarray(tokens, dtype=np.int32)
        rows = np.ascontiguousarray(states, dtype=np.float32)
        self._call(lib.llama_decode, self._batch(ids, rows, position, output=output))
        if not output:
            return None
        last = ids.size - 1
        at = library.logits_address(self._context, last)
        logits = view(at, 1, self._vocabulary)
        states = view(symbols().next(self._context), last + 1, self.width)
        return logits, states[last:].copy()

    def fill(self, states: State, position: int) -> None:
        """Compute cells from states of the target alone, [n, width]; n <= CHUNK."""
        rows = np.ascontiguousarray(states, dtype=np.float32)
        self._call(lib.llama_decode, self._batch(None, rows, position, output=False))

    def block(self, tokens: Tokens, position: int) -> State:
        """Logits of all tokens, [n, vocabulary], which have no states; n <= CHUNK."""
        ids = np.ascontiguousarray(tokens, dtype=np.int32)
        self._call(lib.llama_decode, self._batch(ids, None, position, output=True))
        at = library.logits_address(self._context, 0)
        return view(at, ids.size, self._vocabulary).copy()

    def attend_to_all(self, value: bool) -> None:
        """Whether a token attends to later ones of its call."""
        lib.llama_set_causal_attn(self._context, not value)

    def choose(self, head: int) -> None:
        """Use one of several MTP heads, each of which has its own cells."""
        symbols().set_head(self._context, head)

    def drop(self, position: int) -> bool:
        """Remove the cells from a position on."""
        if self._context is None:
            return True
        return bool(lib.llama_memory_seq_rm(self._memory, 0, position, -1))

    def close(self) -> None:
        """Free the context; may be called again."""
        if self._context is not None:
            lib.llama_free(self._context)
            self._context = None
            if self._pool is not None:
                self._pool.free()
            if self._nodes:
                self._nodes.free()

    def _batch(
        self, ids: Tokens | None, rows: State | None, position: int, *, output: bool
    ) -> Any:
        """A batch of one sequence; its arrays must outlive the call."""
        count = next(len(given) for given in (rows, ids) if given is not None)
        numbers = np.arange(position, position + count)
        # Without tokens, positions of rotations in sections (M-RoPE) have four parts.
        for part in range(1 if ids is not None else 3):
            self._positions[part * count : (part + 1) * count] = numbers
        self._positions[3 * count : 4 * count] = 0
        self._flags[:count] = output
        batch: Any = lib.llama_batch()
        batch.n_tokens = count
        if ids is not None:
            batch.token = _pointer(ids, ctypes.c_int32)
        if rows is not None:
            batch.embd = _pointer(rows, ctypes.c_float)
        batch.pos = _pointer(self._positions, ctypes.c_int32)
        batch.logits = _pointer(self._flags, ctypes.c_int8)
        batch.keeps = ids, rows
        return batch

    def _call(self, function: Any, batch: Any) -> None:
        with self._on_cores:
            code = function(self._context, batch)
            lib.llama_synchronize(self._context)
        if code:
            if self._nodes:
                self._nodes.forget()
            said = library.logged_errors()
            why = said[-1] if said else "no reason given"
            raise ModelError(f"llama.cpp could not compute it (code {code}): {why}")

    def _open_error(self) -> EdgecsError:
        said = library.logged_errors()
        name = self._model.path.name
        if any("alloc" in line or "memory" in line for line in said) or not said:
            return OutOfMemory(
                f"the drafter {name} does not fit into memory: use fewer GPU layers "
                "(-ngld), a smaller context (-c) or --draft none"
            )
        return ModelError(f"llama.cpp cannot open a context of {name}: {said[-1]}")


def _pointer(array: np.ndarray[Any, Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
