"""Gemma 4's drafters: layers that attend to the cells of their target.

They have no cells. A draft begins with the last token and the target's final state
before it; each further token is read with the drafter's own last state, at the same
position (transformers, model_doc/gemma4_assistant).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import llama_cpp as lib
import numpy as np

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import Request, Rows, sole_request
from edgecs.engines.hidden_states import State
from edgecs.engines.llama.heads.features import NextStates
from edgecs.engines.llama.heads.fit import Shape, check_assistant, header_of
from edgecs.engines.llama.heads.llama_head import LlamaHead
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.state_head import Output
from edgecs.errors import ModelError

NAME = "Gemma 4 assistant"


class Gemma4Assistant(LlamaHead):
    """Proposes tokens from the cells and states of a target.

    model: of the drafter, which is closed with it. target: must outlive it. Raises
    ModelError if the two do not fit, OutOfMemory.
    """

    kind = NAME

    def __init__(
        self,
        model: LlamaModel,
        target: LlamaLM,
        cancel: threading.Event,
        *,
        threads: int,
        strict: bool = True,
        sequence: int = 0,
        owns: bool = True,
    ) -> None:
        shape, theirs = Shape.of_model(target.model), header_of(target.model.path)
        check_assistant(model.path, header_of(model.path), shape, theirs)
        if target.sequences > 1 or target.max_leaves > 1:
            raise ModelError(
                f"{model.path.name} reads the cells of its target, which must have one "
                "conversation: give -np 1, another drafter or --draft none"
            )
        self._place = 0  # position of the last token that the target committed
        super().__init__(
            model,
            target,
            NextStates(target.handle, target.width),
            cancel,
            n_ctx=target.n_ctx,
            width=int(lib.llama_model_n_embd_out(model.handle)),
            threads=threads,
            strict=strict,
            sequence=sequence,
            owns=owns,
            like=target.options,
        )

    def score(self, requests: Sequence[Request]) -> list[Rows]:
        """See `StateHead`; the target first removes cells of a rejected draft."""
        self._settle(sole_request(requests).context)
        return super().score(requests)

    def _settle(self, context: Context) -> None:
        if not self._closed and len(context):
            self._target.settle(context.root)

    def _read(
        self, tokens: Tokens, states: State, cancel: threading.Event | None
    ) -> Output:
        self._place = self._position + tokens.size - 1
        self._cache.expect()
        self._computed(tokens)
        return self._at_place(tokens[-1:], states[-1:])

    def _step(self, token: int, state: State) -> Output:
        tokens = np.array([token], dtype=np.int32)
        self._computed(tokens)
        return self._at_place(tokens, state)

    def _at_place(self, tokens: Tokens, state: State) -> Output:
        found = self._cells.decode(tokens, state, self._place, output=True)
        output = self._output(found)
        assert output is not None
        return output

    def _drop(self, length: int) -> int:
        return length
