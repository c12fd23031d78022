"""llama-cpp-python's `Llama.generate`: plain, or with its prompt lookup.

Prompt lookup keeps the logits of every token, n_ctx x vocabulary floats: without
`logits_all` a draft after the first n_batch tokens crashes it.
"""

from __future__ import annotations

from typing import Any, Protocol

import llama_cpp
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from numpy.typing import NDArray

Ids = NDArray[np.intc]


class Heard(Protocol):
    """Receives tokens and the counts of drafted tokens."""

    tokens: list[int]
    tested: int | None
    accepted: int | None

    def __call__(self, tokens: list[int]) -> None:
        """More tokens."""


class Lookup(LlamaPromptLookupDecoding):
    """Prompt lookup that counts tested and accepted tokens."""

    def __init__(self, n_ctx: int, num_pred_tokens: int) -> None:
        super().__init__(num_pred_tokens=num_pred_tokens)
        self.tested = self.accepted = 0
        self._n_ctx = n_ctx
        self._open: list[int] = []  # tokens of the last draft that are not decided yet

    def __call__(self, input_ids: Ids, /, **options: Any) -> Ids:
        """A draft."""
        drafted: Ids = super().__call__(input_ids, **options)
        self._open = drafted[: self._n_ctx - len(input_ids)].tolist()
        self.tested += len(self._open)
        return drafted

    def hear(self, token: int) -> None:
        """Records a token that the model chose."""
        if self._open and token == self._open.pop(0):
            self.accepted += 1
        else:
            self._open = []

    def begin(self) -> None:
        """Resets the counts for a new answer."""
        self.tested = self.accepted = 0
        self._open = []


class Adapter:
    """A loaded model."""

    def __init__(self, hello: dict[str, Any]) -> None:
        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        self.children: list[int] = []
        most = hello["config"].get("num_pred_tokens")
        self._lookup = Lookup(hello["n_ctx"], most) if most else None
        self._llama = llama_cpp.Llama(
            hello["model"],
            n_ctx=hello["n_ctx"],
            n_threads=hello["threads"],
            n_threads_batch=hello["threads"],
            n_gpu_layers=0,
            flash_attn=True,  # llama.cpp's default on a CPU, but not this package's
            logits_all=self._lookup is not None,
            draft_model=self._lookup,
            verbose=False,
        )
        model = llama_cpp.llama_get_model(self._llama.ctx)
        self._vocabulary = llama_cpp.llama_model_get_vocab(model)

    def answer(self, question: dict[str, Any], heard: Heard) -> None:
        """Generates until an end token or the limit."""
        self._llama.reset()  # type: ignore[no-untyped-call]
        if self._lookup:
            self._lookup.begin()
        for token in self._llama.generate(question["ids"], temp=0.0):
            heard([token])
            if self._lookup:
                self._lookup.hear(token)
            full = len(heard.tokens) == question["n"]
            if full or llama_cpp.llama_vocab_is_eog(self._vocabulary, token):
                break
        if self._lookup:
            heard.tested, heard.accepted = self._lookup.tested, self._lookup.accepted


def load(hello: dict[str, Any]) -> Adapter:
    """Loads the model of the first request."""
    return Adapter(hello)
