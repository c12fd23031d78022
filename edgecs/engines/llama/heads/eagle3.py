"""EAGLE-3 drafters in a GGUF (arXiv 2503.01840): one layer on three states of a target.

A target's states are the inputs of three of its layers. An encoder, one matrix, makes
one state of them. A cell of the decoder has a token and the state of the token before.
A reduced vocabulary is mapped to the target's by llama.cpp, with -inf elsewhere.
"""

from __future__ import annotations

import threading
from pathlib import Path

import llama_cpp as lib
import numpy as np

from edgecs.engines.hidden_states import State
from edgecs.engines.llama.gguf_header import Header, read_header
from edgecs.engines.llama.heads.experimental import symbols
from edgecs.engines.llama.heads.features import LayerInputs
from edgecs.engines.llama.heads.llama_head import LlamaHead
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.model import LlamaModel
from edgecs.errors import ModelError

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


class Eagle3(LlamaHead):
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
        self.model = model
        theirs = int(lib.llama_model_n_embd(target.model.handle))
        super().__init__(
            model,
            target,
            LayerInputs(target.handle, layers, theirs),
            cancel,
            n_ctx=min(target.n_ctx, model.trained_ctx),
            width=width,
            threads=threads,
            strict=strict,
            least=1,
        )

    def _lifted(self, states: State) -> State:
        return self._cells.encode(states, self._position)

    def _free(self) -> None:
        super()._free()
        self.model.close()


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
