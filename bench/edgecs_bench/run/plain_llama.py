"""Plain greedy decoding on llama.cpp's C API, as a baseline without edgecs.

Each call computes one token and takes the largest logit; the loop has no code of
edgecs. The inputs are numbers and the handle of loaded weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

_BATCH = 512  # tokens in a prefill chunk


class PlainLlama:
    """A separate llama.cpp context over weights that must outlive it; has `close`.

    model: `llama_model_p`. n_ctx: tokens. type_k, type_v: `ggml_type` of the KV cache.
    Raises MemoryError if llama.cpp cannot create a context.
    """

    def __init__(
        self, model: Any, n_ctx: int, threads: int, type_k: int, type_v: int
    ) -> None:
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = _BATCH
        params.n_threads = params.n_threads_batch = threads
        params.type_k, params.type_v = type_k, type_v
        self._context = lib.llama_init_from_model(model, params)
        if self._context is None:
            raise MemoryError(
                f"llama.cpp cannot create a second context of {n_ctx} tokens"
            )
        self._memory = lib.llama_get_memory(self._context)
        self._vocabulary = lib.llama_model_get_vocab(model)
        self._size = int(lib.llama_vocab_n_tokens(self._vocabulary))
        self._batch = lib.llama_batch_init(_BATCH, 0, 1)
        for i in range(_BATCH):
            self._batch.n_seq_id[i], self._batch.seq_id[i][0] = 1, 0

    def answer(
        self,
        prompt: Sequence[int],
        most: int,
        stopped: Callable[[], bool] = lambda: False,
    ) -> tuple[list[int], float, float]:
        """Generates up to `most` tokens or an end token, from an empty cache.

        stopped: checked before every token. Returns the seconds to the choice of the
        first token, and from there to the last, as well.
        """
        lib.llama_memory_clear(self._memory, False)
        asked = perf_counter()
        token = self._read(prompt)
        began, said, position = perf_counter(), [token], len(prompt)
        batch, vocabulary = self._batch, self._vocabulary
        batch.n_tokens, batch.logits[0] = 1, 1
        while len(said) < most and not (
            stopped() or lib.llama_vocab_is_eog(vocabulary, token)
        ):
            batch.token[0], batch.pos[0] = token, position
            token = self._decode()
            said.append(token)
            position += 1
        return said, began - asked, perf_counter() - began

    def _read(self, prompt: Sequence[int]) -> int:
        """Computes a prompt in chunks and returns the next token."""
        batch, token = self._batch, -1
        for start in range(0, len(prompt), _BATCH):
            chunk = prompt[start : start + _BATCH]
            batch.n_tokens = len(chunk)
            for i, given in enumerate(chunk):
                batch.token[i], batch.pos[i] = given, start + i
                batch.logits[i] = i == len(chunk) - 1
            token = self._decode()
        return token

    def _decode(self) -> int:
        """Computes the batch and returns the best token of its last row."""
        code = lib.llama_decode(self._context, self._batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        pointer = lib.llama_get_logits_ith(self._context, -1)
        row: NDArray[np.float32] = np.ctypeslib.as_array(pointer, (self._size,))
        return int(row.argmax())

    def close(self) -> None:
        """Frees context and batch; may be called again."""
        if self._context is not None:
            lib.llama_batch_free(self._batch)
            lib.llama_free(self._context)
            self._context = None

    def __enter__(self) -> PlainLlama:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
