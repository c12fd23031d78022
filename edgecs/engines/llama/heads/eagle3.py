"""EAGLE-3 drafters in a GGUF (arXiv 2503.01840): one layer on three states of a target.

A target's states are the inputs of three of its layers; the state after the last one
may take the place of one of them. An encoder, one matrix, makes one state of them. A
cell of the decoder has a token and the state of the token before. A reduced vocabulary
is mapped to the target's by llama.cpp, with -inf elsewhere.
"""

from __future__ import annotations

import threading

from edgecs.engines.hidden_states import State
from edgecs.engines.llama.heads.features import LayerInputs
from edgecs.engines.llama.heads.fit import Shape, check_fit, damaged, header_of
from edgecs.engines.llama.heads.llama_head import LlamaHead
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.model import LlamaModel
from edgecs.errors import ModelError

NAME = "EAGLE-3"


class Eagle3(LlamaHead):
    """Proposes tokens from the inputs of three layers of a target.

    model: of the head, which is closed with it if it `owns` it. target: must outlive
    it. sequence: of the target, whose conversation it drafts for. Raises ModelError if
    the two do not fit, OutOfMemory.
    """

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
        header = header_of(model.path)
        fit = check_fit(NAME, model.path, header, Shape.of_model(target.model))
        if len(fit.layers) != 3 or header.own("block_count") != 1:
            raise damaged(model.path.name, NAME, "it does not read three layers in one")
        last = target.model.layers
        if last in fit.layers and target.width != fit.hidden:
            raise ModelError(
                f"{model.path.name} cannot draft for {target.model.path.name}: the "
                f"states after its last layer have width {target.width}, those of its "
                f"layers {fit.hidden}; use another drafter"
            )
        super().__init__(
            model,
            target,
            LayerInputs(target.handle, fit.layers, fit.hidden, last),
            cancel,
            n_ctx=min(target.n_ctx, model.trained_ctx),
            width=fit.width,
            threads=threads,
            strict=strict,
            least=1,
            sequence=sequence,
            owns=owns,
        )

    @property
    def kind(self) -> str:
        """What such a file is called."""
        return NAME

    def _lifted(self, states: State) -> State:
        return self._cells.encode(states, self._position)
