"""Heads in the file of their target: multi-token prediction (MTP, "nextn" layers).

A head is a layer after the target's own, on the target's final state and the next
token (DeepSeek-V3, arXiv 2412.19437, section 2.2). Of several heads, each is trained
for one more token ahead: head i writes draft token i, and has cells of its own.
"""

from __future__ import annotations

import threading

import llama_cpp as lib
import numpy as np

from edgecs.core.context import Tokens
from edgecs.engines.hidden_states import State
from edgecs.engines.llama.heads.experimental import symbols
from edgecs.engines.llama.heads.features import NextStates
from edgecs.engines.llama.heads.llama_head import LlamaHead
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.load_options import LoadOptions
from edgecs.engines.state_head import Output
from edgecs.errors import ModelError

# Architectures with a graph of their heads in llama.cpp 0.3.36's sources, and whose
# target's graph gives the states (`t_h_nextn` in src/models).
WITH_GRAPHS = frozenset(
    (
        *("bailingmoe3", "cohere2moe", "deepseek2", "deepseek32", "glm-dsa"),
        *("glm4moe", "hy_v3", "mimo2", "nemotron_h_moe", "qwen35", "qwen35moe"),
        *("qwen3next", "step35"),
    )
)


def own_heads(model: LlamaModel) -> int:
    """Number of usable MTP heads in a file; 0: there is none."""
    if model.architecture not in WITH_GRAPHS or not model.has_heads:
        return 0
    return int(lib.llama_model_n_layer_nextn(model.handle))


class MtpHead(LlamaHead):
    """Proposes tokens with the heads in the file of a target.

    target: must outlive it. sequence: of the target, whose conversation it drafts for.
    Raises ModelError if there is no head, OutOfMemory.
    """

    def __init__(
        self,
        target: LlamaLM,
        cancel: threading.Event,
        *,
        threads: int,
        strict: bool = True,
        sequence: int = 0,
    ) -> None:
        symbols()
        model = target.model
        self.heads = own_heads(model)
        if not self.heads:
            raise ModelError(
                f"{model.path.name} has no MTP head that llama.cpp can run: use "
                "another drafter, or --draft none"
            )
        self._drafted: list[tuple[int, State]] = []  # cells of the draft
        self._before_draft = 0  # cells
        self._head = 0  # the one that computed the last cells
        super().__init__(
            model,
            target,
            NextStates(target.handle, target.width),
            cancel,
            n_ctx=target.n_ctx,
            width=target.width,
            threads=threads,
            strict=strict,
            owns=False,
            sequence=sequence,
            mtp=True,
        )

    @property
    def _cells_size(self) -> int:
        """Bytes of the cells of all heads, each a layer like the largest of others."""
        like = LoadOptions()
        layers = self.model.memory(like).layer_bytes(self.window, like)
        return self.heads * int(max(layers, default=0))

    def _decode(
        self, tokens: Tokens, states: State, *, output: bool = False
    ) -> Output | None:
        """Every head reads all tokens, the first one last, whose output is used."""
        self._cache.expect()
        position = self._position
        found = None
        for head in reversed(range(self.heads)):
            if self.heads > 1:
                self._cells.choose(head)
                self._cells.drop(position)
            found = self._cells.decode(
                tokens, states, position, output=output and not head
            )
        self._computed(tokens)
        self._drafted, self._before_draft, self._head = [], len(self._cache), 0
        return self._output(found)

    def _step(self, token: int, state: State) -> Output:
        self._cache.expect()
        self._drafted.append((token, state))
        head = min(len(self._drafted), self.heads - 1)
        cells = self._drafted[-1:]
        if head != self._head:  # it has not read the draft
            self._cells.choose(head)
            cells = self._drafted
            self._cells.drop(self._cache.first + self._before_draft)
        self._head = head
        found = self._output(
            self._cells.decode(
                np.array([token for token, _ in cells], dtype=np.int32),
                np.vstack([state for _, state in cells]),
                self._position + 1 - len(cells),
                output=True,
            )
        )
        assert found is not None
        self._computed(np.array([token], dtype=np.int32))
        return found

    def _drop(self, length: int) -> int:
        left = super()._drop(length)
        kept = max(0, left - self._before_draft)
        if kept < len(self._drafted):
            del self._drafted[kept:]
            if self.heads > 1:
                self._head = -1  # its cells may be those of the abandoned draft
        return left
