"""Embeddings of texts by a llama.cpp context of their own.

The context pools the final states of a text as the model's file states: their mean, the
state of its first token (CLS) or that of its last one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Tokens
from edgecs.engines.host import usable_cores
from edgecs.engines.llama import library
from edgecs.engines.llama.batch import Batch
from edgecs.engines.llama.model import FLASH_TYPES, KV_TYPES, LlamaModel
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import Cancelled, ContextFull, ModelError, OutOfMemory

# chosen: all tokens of a text are computed at once, so buffers grow with its square.
USUAL = 2048  # tokens of the longest text, where the options state no context
_MOST_TEXTS = 64  # in one call


class LlamaEmbedder:
    """Computes embeddings with a GGUF model, which must outlive it.

    n_ctx: most tokens of a text: that of the options, else 2048, and at most the
    trained length. width: numbers of an embedding. Raises OutOfMemory, ModelError.
    """

    def __init__(
        self, model: LlamaModel, options: LoadOptions, cancel: threading.Event
    ) -> None:
        self._model, self.cancel = model, cancel
        self.n_ctx = min(options.n_ctx or USUAL, model.trained_ctx)
        self.vocab_size = model.vocabulary.size
        self.width = int(lib.llama_model_n_embd_out(model.handle))
        self.threads = options.threads or usable_cores()
        self._most = max(self.n_ctx, options.n_batch)
        self._ctx: lib.llama_context_p | None = self._open(options)
        self._batch = Batch(self._most)

    def _open(self, options: LoadOptions) -> lib.llama_context_p:
        params = lib.llama_context_default_params()
        params.embeddings = True
        params.n_ctx = params.n_batch = params.n_ubatch = self._most
        params.n_seq_max, params.kv_unified = _MOST_TEXTS, True
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = FLASH_TYPES[options.flash_attention]
        params.type_k = KV_TYPES[options.type_k]
        params.type_v = KV_TYPES[options.type_v]
        library.clear_log()
        context = lib.llama_init_from_model(self._model.handle, params)
        if context is None:
            said = library.logged_errors()
            why = said[-1] if said else "memory is short"
            raise OutOfMemory(
                f"llama.cpp cannot open a context for texts of {self.n_ctx} tokens "
                f"({why}): give a smaller one (-c)"
            )
        return cast(lib.llama_context_p, context)

    def embed(
        self,
        texts: Sequence[Tokens],
        is_unwanted: Callable[[], bool] = lambda: False,
    ) -> NDArray[np.float32]:
        """The embeddings of some texts, not normalised: [texts, width].

        Several texts share a call; the last bits of an embedding may depend on which.
        is_unwanted: asked between calls whether to stop. Raises ContextFull for a text
        that has too many tokens, ModelError for an empty one, Cancelled.
        """
        for at, text in enumerate(texts):
            if not 0 < text.size <= self.n_ctx:
                raise ContextFull(
                    f"text {at} has {text.size} tokens: this model embeds 1 to "
                    f"{self.n_ctx}"
                )
        rows = np.empty((len(texts), self.width), dtype=np.float32)
        for group in self._groups(texts):
            if self.cancel.is_set() or is_unwanted():
                raise Cancelled("the embeddings were cancelled")
            self._compute([texts[i] for i in group])
            for sequence, i in enumerate(group):
                found = lib.llama_get_embeddings_seq(self._ctx, sequence)
                if not found:
                    raise ModelError("llama.cpp returns no embedding of a text")
                rows[i] = np.ctypeslib.as_array(found, (self.width,))
        if not np.isfinite(rows).all():
            raise ModelError(
                "the model gives embeddings that are not numbers: its file is damaged, "
                "or its arithmetic overflows in this build; try another quantisation"
            )
        return rows

    def _groups(self, texts: Sequence[Tokens]) -> Iterator[list[int]]:
        """Indices of the texts of each call, in their order."""
        group, tokens = list[int](), 0
        for i, text in enumerate(texts):
            if group and (tokens + text.size > self._most or len(group) == _MOST_TEXTS):
                yield group
                group, tokens = [], 0
            group.append(i)
            tokens += text.size
        if group:
            yield group

    def _compute(self, texts: Sequence[Tokens]) -> None:
        if self._ctx is None:
            raise ModelError("the model was closed: load it again")
        memory = lib.llama_get_memory(self._ctx)
        if memory:
            lib.llama_memory_clear(memory, True)
        self._batch.clear()
        for sequence, text in enumerate(texts):
            ids = [[sequence]] * text.size
            self._batch.add(text.tolist(), range(text.size), ids, text.size)
        library.clear_log()
        code = lib.llama_decode(self._ctx, self._batch.struct)
        lib.llama_synchronize(self._ctx)
        self._model.check_workers()
        if code:
            said = library.logged_errors()
            why = said[-1] if said else "no reason given"
            raise ModelError(f"llama.cpp could not embed (code {code}): {why}")

    def close(self) -> None:
        """Free the context; may be called again."""
        if self._ctx is not None:
            lib.llama_free(self._ctx)
            self._ctx = None
