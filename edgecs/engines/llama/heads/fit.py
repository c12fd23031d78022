"""Whether a head's file fits a target, checked where llama.cpp would abort instead."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import llama_cpp as lib
import numpy as np

from edgecs.core.reading import plain, reason, shown
from edgecs.engines.gguf_header import Header, read_header
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
# Those of them whose graphs also give the state after the last layer, as wide as the
# others (`t_h_nextn`); for any other one llama.cpp's server reads zeros.
WITH_LAST = frozenset(
    (
        *("bailingmoe3", "gemma4", "gpt-oss", "mimo2", "nemotron_h", "nemotron_h_moe"),
        *("qwen35", "qwen35moe", "qwen3next"),
    )
)
# chosen: more than any drafter reads.
_MOST_LAYERS = 64


class Shape(NamedTuple):
    """What a head has to fit of its target."""

    name: str
    architecture: str
    layers: int
    hidden: int  # width of its states
    rows: int  # of its output matrix

    @classmethod
    def of_model(cls, model: LlamaModel) -> Shape:
        """That of a loaded target."""
        hidden = int(lib.llama_model_n_embd(model.handle))
        rows = model.vocabulary.size
        return cls(model.path.name, model.architecture, model.layers, hidden, rows)

    @classmethod
    def of_file(cls, path: Path, header: Header) -> Shape:
        """That of a target's file."""
        layers = _number(header, "block_count")
        layers -= _number(header, "nextn_predict_layers")
        hidden = _number(header, "embedding_length")
        return cls(path.name, header.architecture, layers, hidden, header.tokens)


class Fit(NamedTuple):
    """The layers whose inputs a head reads, and widths of states."""

    layers: list[int]  # the number of layers stands for the state after the last one
    hidden: int  # of the target
    width: int  # of the head


def header_of(path: Path) -> Header:
    """The header of a file; raises ModelError if it cannot be read."""
    try:
        return read_header(path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path.name} has a header that cannot be used ({reason(error)}): fetch "
            "the file again"
        ) from error


def check_fit(kind: str, path: Path, header: Header, target: Shape) -> Fit:
    """Raise ModelError if a file does not fit the target.

    llama.cpp would abort, or read and write outside of its memory.
    """
    unfit = f"{path.name} cannot draft for {target.name}"
    if target.architecture not in HOOKED:
        raise ModelError(
            f"{unfit}: llama.cpp does not give the states of the layers of "
            f"{plain(target.architecture) or 'this'} models; use another drafter"
        )
    layers, width = header.own("target_layers"), header.own("embedding_length")
    if not isinstance(layers, list) or not 0 < len(layers) <= _MOST_LAYERS:
        raise damaged(path.name, kind, "it does not name layers of its target")
    layers = [int(layer) for layer in layers if math.isfinite(layer)]
    reads_last = kind == "EAGLE-3" and target.layers in layers
    if reads_last and target.architecture not in WITH_LAST:
        raise ModelError(
            f"{unfit}: it reads the state after the last layer, which llama.cpp does "
            f"not give for {plain(target.architecture)} models; use another drafter"
        )
    if not all(0 <= layer < target.layers + reads_last for layer in layers):
        raise ModelError(
            f"{unfit}: it reads the layers {', '.join(map(str, layers))}, and the "
            f"target has {target.layers}; use the target that it was made for"
        )
    if not isinstance(width, int) or not 0 < width <= 1 << 20:
        raise damaged(path.name, kind, "its width is not a number")
    needs = header.own("target_hidden_size") if kind == "EAGLE-3" else width
    own = {"token_embd.weight", "output.weight"} <= header.tensors.keys()
    if needs != target.hidden or not (own or width == target.hidden):
        raise ModelError(
            f"{unfit}: it needs hidden states of width "
            f"{shown(needs if needs != target.hidden else width)}, and the target's "
            f"have width {target.hidden}; use the target that it was made for"
        )
    if "output.weight" not in header.tensors and header.tokens != target.rows:
        raise ModelError(
            f"{unfit}: it has {header.tokens} tokens and uses the output matrix of its "
            f"target, which has {target.rows} rows; use the target that it was made for"
        )
    _check_tokens(kind, path, header)
    return Fit(layers, target.hidden, width)


def check_assistant(path: Path, header: Header, target: Shape, theirs: Header) -> None:
    """Raise ModelError if a drafter of Gemma 4 does not fit the target.

    It attends to the keys and values of the target's last two layers, one with a
    sliding window and one without, so their sizes have to be equal. theirs: the header
    of the target.
    """
    unfit = f"{path.name} cannot draft for {target.name}"
    if target.architecture != "gemma4":
        raise ModelError(
            f"{unfit}: it reads the cells of Gemma 4 models, and this is a "
            f"{plain(target.architecture) or 'nameless'} model; use another drafter"
        )
    hidden = header.own("embedding_length_out")
    if hidden != target.hidden:
        raise ModelError(
            f"{unfit}: it needs hidden states of width {shown(hidden)}, and the "
            f"target's have width {target.hidden}; use the target that it was made for"
        )
    if _cells(header, -1) != _cells(theirs, target.layers - 1):
        raise ModelError(
            f"{unfit}: the cells that it reads have other sizes; use the target that "
            "it was made for"
        )


def _cells(header: Header, last: int) -> list[object]:
    """Sizes of the cells of a layer with a sliding window, and of one without.

    last: index of the latter, -1: the file has the same number for all such layers.
    """
    names = ("key_length", "value_length", "key_length_swa", "value_length_swa")
    found: list[object] = [header.own(f"attention.{name}") for name in names]
    heads = header.own("attention.head_count_kv")
    if not isinstance(heads, list):
        return [*found, heads, heads]
    pattern = header.own("attention.sliding_window_pattern")
    windowed = pattern if isinstance(pattern, list) else []
    if last >= 0:
        return [*found, *heads[max(0, last - 1) : last + 1]]
    by_kind = {bool(w): n for w, n in zip(windowed, heads, strict=False)}
    return [*found, by_kind.get(True), by_kind.get(False)]


def _number(header: Header, key: str) -> int:
    found = header.own(key)
    return found if isinstance(found, int) else 0


def _check_tokens(kind: str, path: Path, header: Header) -> None:
    """Raise ModelError for sizes that llama.cpp does not check."""
    vocabulary = header.tokens
    embeddings = header.tensors.get("token_embd.weight")
    if embeddings and (len(embeddings.shape) != 2 or embeddings.shape[1] < vocabulary):
        raise damaged(
            path.name, kind, "it has too few embeddings for its target's tokens"
        )
    try:
        ids = header.integers(path, "d2t")
    except (OSError, ValueError) as error:
        raise damaged(path.name, kind, reason(error)) from error
    if ids is not None:
        inside = ids.size and ids.min() >= 0 and ids.max() < vocabulary
        if not inside or np.unique(ids).size < ids.size:
            raise damaged(path.name, kind, "its tokens are not those of its target")


def damaged(name: str, kind: str, why: str) -> ModelError:
    """The error for a file that no target fits."""
    article = "an" if kind[0] in "AEIOU" else "a"
    return ModelError(
        f"{name} is not usable as {article} {kind} drafter ({why}): fetch or convert "
        "it again"
    )
