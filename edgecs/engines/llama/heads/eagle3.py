"""EAGLE-3 drafters in a GGUF (arXiv 2503.01840): one layer on three states of a target.

A target's states are the inputs of three of its layers. An encoder, one matrix, makes
one state of them. A cell of the decoder has a token and the state of the token before.
A reduced vocabulary is mapped to the target's by llama.cpp, with -inf elsewhere.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import llama_cpp as lib
import numpy as np

from edgecs.core.context import Tokens
from edgecs.engines.hidden_states import State
from edgecs.engines.llama.gguf_header import Header, read_header
from edgecs.engines.llama.heads.cells import CHUNK, HeadCells
from edgecs.engines.llama.heads.experimental import symbols
from edgecs.engines.llama.heads.features import LayerInputs
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.state_head import Output, StateHead
from edgecs.errors import Cancelled, ModelError

# Architectures whose graphs in llama.cpp 0.3.36's sources give the inputs of layers
# (`t_layer_inp` in src/models); for any other one it aborts the process.
HOOKED = frozenset(
    (
        *("bailingmoe3", "deepseek4", "gemma4", "gpt-oss", "hunyuan_vl", "lfm2"),
        *("lfm2moe", "llama", "mimo2", "minimax-01", "minimax-m2", "muse-glimmer"),
        *("nanbeige", "nemotron_h", "nemotron_h_moe", "qwen3", "qwen35", "qwen35moe"),
        *("qwen3moe", "qwen3next", "qwen4exp"),
    )
)
# chosen: more rows of logits than a round needs cost more than a second call.
_FEW = 16  # tokens that are read in one call with the last one


class Eagle3(StateHead):
    """Proposes tokens from the inputs of three layers of a target.

    model: of the head, which is closed with it. target: must outlive it. Raises
    ModelError if the two do not fit, OutOfMemory.
    """

    def __init__(
        self,
        model: LlamaModel,
        target: LlamaLM,
        cancel: threading.Event,
        *,
        threads: int,
        strict: bool = True,
    ) -> None:
        layers, width = fitting_layers(model, target)
        self.model, self._target = model, target
        window = min(target.n_ctx, model.trained_ctx)
        theirs = int(lib.llama_model_n_embd(target.model.handle))
        features = LayerInputs(target.handle, layers, theirs)
        with ExitStack() as undo:
            states = target.record(features)
            undo.callback(target.stop_recording, states)
            super().__init__(
                model.path.name,
                states,
                target.vocab_size,
                cancel,
                window=window,
                least=1,
            )
            self._cells = HeadCells(
                model,
                target.handle,
                n_ctx=window,
                threads=threads,
                width=width,
                strict=strict,
            )
            undo.pop_all()

    def _read(
        self, tokens: Tokens, states: State, cancel: threading.Event | None
    ) -> Output:
        start, count = 0, tokens.size
        while count - start > _FEW:
            end = min(start + CHUNK, count - 1)
            self._decode(tokens[start:end], self._encoded(states[start:end]))
            start = end
            if self.cancel.is_set() or (cancel and cancel.is_set()):
                raise Cancelled("stopped while the drafter was reading")
        found = self._decode(tokens[start:], self._encoded(states[start:]), output=True)
        assert found is not None
        return found

    def _step(self, token: int, state: State) -> Output:
        found = self._decode(np.array([token], dtype=np.int32), state, output=True)
        assert found is not None
        return found

    def _encoded(self, states: State) -> State:
        return self._cells.encode(states, self._position)

    @property
    def _position(self) -> int:
        """That of the next cell."""
        return self._cache.first + len(self._cache)

    def _decode(
        self, tokens: Tokens, states: State, *, output: bool = False
    ) -> Output | None:
        self._cache.expect()
        found = self._cells.decode(tokens, states, self._position, output=output)
        self._computed(tokens)
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
        self._target.stop_recording(self._states)
        self.model.close()


def resized(logits: State, size: int) -> State:
    """Rows in the size of the target's vocabulary; -inf for tokens without a logit."""
    if logits.shape[1] >= size:
        return logits[:, :size]
    rows = np.full((len(logits), size), -np.inf, dtype=np.float32)
    rows[:, : logits.shape[1]] = logits
    return rows


def fitting_layers(drafter: LlamaModel, target: LlamaLM) -> tuple[list[int], int]:
    """The layers whose inputs a drafter reads, and the width of its own states.

    Raises ModelError if its file does not fit the target: llama.cpp would abort, or
    write outside of its memory.
    """
    symbols()
    header, model = read_header(drafter.path), target.model
    name, theirs = drafter.path.name, model.path.name
    if model.architecture not in HOOKED:
        raise ModelError(
            f"{name} cannot draft for {theirs}: llama.cpp does not give the states of "
            f"the layers of {model.architecture or 'this'} models; use another drafter"
        )
    layers, blocks = header.own("target_layers"), lib.llama_model_n_layer(model.handle)
    if not (isinstance(layers, list) and len(layers) == 3):
        raise _damaged(name, "it does not name three layers of its target")
    if not all(0 <= layer < blocks for layer in layers):
        raise ModelError(
            f"{name} cannot draft for {theirs}: it reads the layers "
            f"{', '.join(map(str, layers))}, and the target has {blocks}; use the "
            "target that it was made for"
        )
    width, needs = header.own("embedding_length"), header.own("target_hidden_size")
    if not isinstance(width, int) or not 0 < width <= 1 << 20:
        raise _damaged(name, "its width is not a number")
    hidden = int(lib.llama_model_n_embd(model.handle))
    own = {"token_embd.weight", "output.weight"} <= header.tensors.keys()
    if needs != hidden or not (own or width == hidden):
        raise ModelError(
            f"{name} cannot draft for {theirs}: it needs hidden states of width "
            f"{needs if needs != hidden else width}, and the target's have width "
            f"{hidden}; use the target that it was made for"
        )
    size, rows = drafter.vocabulary.size, model.vocabulary.size
    if "output.weight" not in header.tensors and size != rows:
        raise ModelError(
            f"{name} cannot draft for {theirs}: it has {size} tokens and uses the "
            f"output matrix of its target, which has {rows} rows; use the target that "
            "it was made for"
        )
    _check_tensors(drafter.path, header, size)
    return layers, width


def _check_tensors(path: Path, header: Header, vocabulary: int) -> None:
    """Raise ModelError for sizes that llama.cpp does not check."""
    if header.own("block_count") != 1:
        raise _damaged(path.name, "it does not have one layer")
    embeddings = header.tensors.get("token_embd.weight")
    if embeddings and (len(embeddings.shape) != 2 or embeddings.shape[1] < vocabulary):
        raise _damaged(path.name, "it has too few embeddings for its target's tokens")
    ids = header.integers(path, "d2t")
    if ids is not None:
        inside = ids.size and ids.min() >= 0 and ids.max() < vocabulary
        if not inside or np.unique(ids).size < ids.size:
            raise _damaged(path.name, "its tokens are not those of its target")


def _damaged(name: str, why: str) -> ModelError:
    return ModelError(
        f"{name} is not a usable EAGLE-3 drafter ({why}): fetch or convert it again"
    )
