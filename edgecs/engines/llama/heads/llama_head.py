"""A head whose cells llama.cpp computes, see `state_head`."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import numpy as np

from edgecs.core.context import Tokens
from edgecs.engines.hidden_states import State
from edgecs.engines.llama.heads.cells import CHUNK, HeadCells
from edgecs.engines.llama.heads.features import Features
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.load_options import LoadOptions
from edgecs.engines.state_head import Output, StateHead
from edgecs.errors import Cancelled

# chosen: more rows of logits than a round needs cost more than a second call.
_FEW = 16  # tokens that are read in one call with the last one
_FLOAT = 4  # bytes


class LlamaHead(StateHead):
    """Proposes tokens from the features that a target records.

    model: has the weights of the head, and perhaps of the target too; owns: whether it
    is closed with the head. sequence: of the target, whose states it reads. width: of
    the head's own states. n_ctx: its cells. Other arguments: see `StateHead`,
    `HeadCells`.
    """

    def __init__(
        self,
        model: LlamaModel,
        target: LlamaLM,
        features: Features,
        cancel: threading.Event,
        *,
        n_ctx: int,
        width: int,
        threads: int,
        strict: bool,
        least: int = 0,
        owns: bool = True,
        sequence: int = 0,
        mtp: bool = False,
        like: LoadOptions | None = None,
    ) -> None:
        self.model, self._owns, self._target = model, owns, target
        self._reads = sequence
        with ExitStack() as undo:
            states = target.record(features, sequence)
            undo.callback(target.stop_recording, states, sequence)
            super().__init__(
                model.path.name,
                states,
                target.vocab_size,
                cancel,
                window=n_ctx,
                least=least,
            )
            self._cells = HeadCells(
                model,
                target.handle,
                n_ctx=n_ctx,
                threads=threads,
                width=width,
                strict=strict,
                mtp=mtp,
                like=like,
            )
            undo.pop_all()

    @property
    def conversation_size(self) -> int:
        """Estimated bytes of one conversation: its cells, its states, its rows."""
        rows = 2 * CHUNK * (self.model.vocabulary.size + self._cells.width)
        return self._cells_size + self._states.size + rows * _FLOAT

    @property
    def _cells_size(self) -> int:
        """Bytes of its cells, by the metadata of its file."""
        like = LoadOptions()  # the types of llama.cpp's cells by default
        return self.model.memory(like).size(self.window, like)

    def _lifted(self, states: State) -> State:
        """The head's own states for those of the target, [n, width]."""
        return states

    @property
    def _position(self) -> int:
        """That of the next cell."""
        return self._cache.first + len(self._cache)

    def _read(
        self, tokens: Tokens, states: State, cancel: threading.Event | None
    ) -> Output:
        start, count = 0, tokens.size
        while count - start > _FEW:
            end = min(start + CHUNK, count - 1)
            self._decode(tokens[start:end], self._lifted(states[start:end]))
            start = end
            if self.cancel.is_set() or (cancel and cancel.is_set()):
                raise Cancelled("stopped while the drafter was reading")
        found = self._decode(tokens[start:], self._lifted(states[start:]), output=True)
        assert found is not None
        return found

    def _step(self, token: int, state: State) -> Output:
        found = self._decode(np.array([token], dtype=np.int32), state, output=True)
        assert found is not None
        return found

    def _decode(
        self, tokens: Tokens, states: State, *, output: bool = False
    ) -> Output | None:
        self._cache.expect()
        found = self._cells.decode(tokens, states, self._position, output=output)
        self._computed(tokens)
        return self._output(found)

    def _output(self, found: tuple[State, State] | None) -> Output | None:
        if found is None:
            return None
        logits, state = found
        return Output(resized(logits, self.vocab_size), state)

    def _drop(self, length: int) -> int:
        if length and self._cells.drop(self._cache.first + length):
            return length
        self._cells.drop(-1)
        return 0

    def _free(self) -> None:
        self._cells.close()
        self._target.stop_recording(self._states, self._reads)
        if self._owns:
            self.model.close()


def resized(logits: State, size: int) -> State:
    """Rows in the size of the target's vocabulary; -inf for tokens without a logit."""
    if logits.shape[1] >= size:
        return logits[:, :size]
    rows = np.full((len(logits), size), -np.inf, dtype=np.float32)
    rows[:, : logits.shape[1]] = logits
    return rows
