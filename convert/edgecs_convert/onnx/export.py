"""Exports a GGUF as an ONNX drafter: a quantised decoder graph with a manifest.

This needs the extra `convert` and no network. transformers loads the weights, so it
must support GGUF files of the architecture.
"""

from __future__ import annotations

import hashlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Tokens
from edgecs.errors import ConfigError, ModelError
from edgecs.hub.compatibility import vocabulary_hash, write_pieces
from edgecs.hub.drafter_manifest import (
    LARGEST_WINDOW,
    SMALLEST_WINDOW,
    DrafterManifest,
    write_drafter,
)
from edgecs_convert.folders import whole_folder
from edgecs_convert.onnx.pruning import (
    find_layers,
    frequent,
    keep_layers,
    trim_vocabulary,
)
from edgecs_convert.text import TEXT

if TYPE_CHECKING:
    from edgecs.engines.llama.tokenizer import LlamaVocabulary

TASK = "text-generation-with-past"
_GRAPH = "model.onnx"
_PIECES = "vocabulary.json"
_IDS = "ids.npy"
_COMPARED = 256  # tokens of the text for comparing a drafter
_LEAST = 1000  # minimum tokens of a text that selects a vocabulary
_BLOCK = 32  # weights that share a scale in int4


@dataclass(frozen=True)
class Form:
    """Settings of a drafter. quantize: "int8", "int4" or "none".

    window: context length. rows: maximum size of its vocabulary, taken from the tokens
    of the text `vocabulary_from`; without a text it has all tokens of the source.
    layers: the number of layers to keep (the best ones are searched), or which ones.
    """

    quantize: str = "int8"
    window: int = 512
    vocabulary_from: Path | None = None
    rows: int = 16_384
    layers: int | tuple[int, ...] | None = None


Tell = Callable[[str], None]


def export(
    gguf: Path, out: Path, form: Form | None = None, tell: Tell = lambda text: None
) -> Path:
    """Writes a drafter's folder and returns it; `out` must not exist yet.

    An interrupted run leaves nothing at `out`. Raises ConfigError, ModelError.
    """
    form = form or Form()
    _check(gguf, out, form)
    return whole_folder(out, lambda folder: _fill(folder, gguf, form, tell))


def export_module(model: Any, out: Path, *, quantize: str = "int8") -> None:
    """Exports a transformers model as a graph to the file `out`."""
    from optimum.exporters.onnx import onnx_export_from_model

    with tempfile.TemporaryDirectory(dir=out.parent) as plain, _quietly():
        onnx_export_from_model(model, plain, task=TASK, do_validation=False)
        _QUANTISERS[quantize](Path(plain) / _GRAPH, out)


def read_config(gguf: Path) -> Any:
    """The transformers config of a GGUF's header. Raises ModelError."""
    from transformers import AutoConfig

    with _quietly(), _understood(gguf):
        return AutoConfig.from_pretrained(str(gguf.parent), gguf_file=gguf.name)


def load_weights(gguf: Path) -> Any:
    """The transformers model of a GGUF, float32, on the CPU. Raises ModelError."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = read_config(gguf)
    config.dtype = torch.float32
    # Not from_pretrained: for a GGUF it requires accelerate, which is not needed here.
    with _quietly(), _understood(gguf):
        model = AutoModelForCausalLM.from_config(config).eval()
        read = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=model)
    missing, _ = model.load_state_dict(read["tensors"], strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    lacking = ", ".join(sorted(set(missing) - tied))
    if lacking:
        raise ModelError(
            f"{gguf} lacks the weights {lacking}: give a complete model whose "
            "GGUF files transformers can read"
        )
    model.tie_weights()
    return model


def _fill(folder: Path, gguf: Path, form: Form, tell: Tell) -> None:
    from edgecs.engines.llama.tokenizer import open_vocabulary
    from edgecs_convert.onnx.parity import parity

    with open_vocabulary(gguf) as vocabulary:
        pieces = vocabulary.pieces()
        text = vocabulary.encode(TEXT)[: min(_COMPARED, form.window - 1)]
        ids, coverage = _ids(vocabulary, form, tell)
    write_pieces(folder / _PIECES, pieces)
    model = load_weights(gguf)
    rows = _rows(model, text)
    layers = _layers(model, form, text, tell)
    if ids is not None:
        ids = trim_vocabulary(model, ids)
        np.save(folder / _IDS, ids)
    graph = folder / _GRAPH
    export_module(model, graph, quantize=form.quantize)
    manifest = _manifest(folder, gguf, form, model, vocabulary_hash(pieces), ids)
    write_drafter(manifest)
    apart = parity(folder, rows, text)
    tell(
        f"compared with {gguf.name}: logits differ by {apart.largest:.3g} at most, "
        f"{apart.same:.1%} of the choices are the same"
    )
    made: dict[str, Any] = {
        "largest_difference": round(apart.largest, 5),
        "same_choices": round(apart.same, 4),
    }
    if layers:
        made["layers"] = layers
    if coverage is not None:
        made["coverage"] = round(coverage, 4)
    write_drafter(replace(manifest, made=made))


def _ids(
    vocabulary: LlamaVocabulary, form: Form, tell: Tell
) -> tuple[Tokens | None, float | None]:
    """The ids to keep (None: all), and the share of a held-out tenth that they cover.

    The ids come from the other nine tenths of the text.
    """
    path = form.vocabulary_from
    if path is None:
        return None, None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from error
    tokens = vocabulary.encode(text, document=False)
    if tokens.size < _LEAST:
        raise ConfigError(
            f"{path} has {tokens.size} tokens: {_LEAST} or more are needed to select "
            "a vocabulary"
        )
    held = tokens[-tokens.size // 10 :]
    always = [
        *vocabulary.ends,
        *vocabulary.encode(vocabulary.bos or "", document=False),
    ]
    ids = frequent(tokens[: -held.size], form.rows, vocabulary.size, always)
    coverage = float(np.isin(held, ids).mean())
    tell(f"{ids.size} tokens cover {coverage:.1%} of the last tenth of {path.name}")
    return ids, coverage


def _layers(model: Any, form: Form, text: Tokens, tell: Tell) -> list[int] | None:
    """Removes layers and returns the remaining ones."""
    if form.layers is None:
        return None
    kept = form.layers
    if isinstance(kept, int):
        kept = tuple(find_layers(model, text, kept, tell))
    keep_layers(model, kept)
    return sorted(kept)


def _rows(model: Any, tokens: Tokens) -> NDArray[np.float32]:
    """The logits of a transformers model after every token of a text."""
    import torch

    with torch.no_grad():
        ids = torch.from_numpy(tokens[None].astype(np.int64))
        rows = model(ids, use_cache=False).logits[0].numpy()
    return np.asarray(rows, dtype=np.float32)


def _manifest(
    folder: Path, gguf: Path, form: Form, model: Any, hashed: str, ids: Tokens | None
) -> DrafterManifest:
    graph = folder / _GRAPH
    return DrafterManifest(
        name=gguf.stem,
        description=f"{gguf.stem} as an ONNX drafter",
        license=_license(gguf),
        file=_GRAPH,
        cache="growing",
        window=form.window,
        vocabulary=hashed,
        vocabulary_file=_PIECES,
        id_map=None if ids is None else _IDS,
        unknown=None if ids is None else len(ids) - 1,
        parameters=sum(p.numel() for p in model.parameters()),
        quantization=None if form.quantize == "none" else form.quantize,
        source=gguf.name,
        size=graph.stat().st_size,
        sha256=hashlib.sha256(graph.read_bytes()).hexdigest(),
        folder=folder,
    )


def _license(gguf: Path) -> str:
    import gguf as reader

    field = reader.GGUFReader(gguf).get_field("general.license")
    return "unknown" if field is None else str(field.contents())


def _check(gguf: Path, out: Path, form: Form) -> None:
    quantize, window = form.quantize, form.window
    if not gguf.is_file():
        raise ModelError(f"there is no file {gguf}: give the GGUF to export")
    if out.exists():
        raise ConfigError(f"{out} exists already: give another folder")
    if quantize not in _QUANTISERS:
        known = ", ".join(_QUANTISERS)
        raise ConfigError(f"quantisation {quantize!r} is unknown: use one of {known}")
    if window < SMALLEST_WINDOW:
        raise ConfigError(
            f"the window must be {SMALLEST_WINDOW} tokens or more, got {window}"
        )
    if window > LARGEST_WINDOW:
        raise ConfigError(
            f"the window must be {LARGEST_WINDOW} tokens at most, got {window}"
        )


def _int8(plain: Path, out: Path) -> None:
    """Weights and head as int8, activations at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(plain, out, weight_type=QuantType.QInt8, per_channel=True)


def _int4(plain: Path, out: Path) -> None:
    """Weights and head in blocks of 32, embeddings as int8."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(plain)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            _pack_node(model.graph, node, onnx.numpy_helper, weights)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, plain)
    quantize_dynamic(
        plain, out, weight_type=QuantType.QInt8, op_types_to_quantize=["Gather"]
    )


def _pack_node(graph: Any, node: Any, arrays: Any, weights: dict[str, Any]) -> None:
    """Replaces a MatMul with a MatMulNBits; nodes may share a packed weight."""
    name = node.input[1]
    matrix = arrays.to_array(weights[name])
    packed = [f"{name}_packed", f"{name}_scales"]
    if packed[0] not in weights:
        for new, values in zip(packed, pack_int4(matrix), strict=True):
            weights[new] = arrays.from_array(values, new)
            graph.initializer.append(weights[new])
        graph.initializer.remove(weights[name])
    node.op_type, node.domain = "MatMulNBits", "com.microsoft"
    node.input[1:] = packed
    rows, columns = matrix.shape
    sizes = {"K": rows, "N": columns, "bits": 4, "block_size": _BLOCK}
    # accuracy_level 4: int8 activations, the fast path on a CPU.
    for key, value in {**sizes, "accuracy_level": 4}.items():
        attribute = node.attribute.add(name=key, i=value)
        attribute.type = attribute.INT


def pack_int4(matrix: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """A weight [k, n] in the format of MatMulNBits: [n, blocks, 16] nibbles, scales.

    A nibble is 8 plus the weight divided by the scale of its block; the weight with the
    largest magnitude becomes -8.
    """
    k, n = matrix.shape
    blocks = -(-k // _BLOCK)
    padded = np.zeros((n, blocks * _BLOCK), dtype=np.float32)
    padded[:, :k] = matrix.T
    values = padded.reshape(n, blocks, _BLOCK)
    at = np.abs(values).argmax(axis=2, keepdims=True)
    scales = np.take_along_axis(values, at, axis=2) / -8
    divisors = np.where(scales == 0, np.float32(1), scales)
    nibbles = np.clip(np.round(values / divisors) + 8, 0, 15).astype(np.uint8)
    return nibbles[..., ::2] | nibbles[..., 1::2] << 4, scales.reshape(n, blocks)


def _none(plain: Path, out: Path) -> None:
    import onnx

    onnx.save(onnx.load(plain), out)


_QUANTISERS: dict[str, Callable[[Path, Path], None]] = {
    "int8": _int8,
    "int4": _int4,
    "none": _none,
}


@contextmanager
def _understood(gguf: Path) -> Iterator[None]:
    """Converts errors of transformers about unreadable files to a ModelError."""
    try:
        yield
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"transformers cannot read {gguf.name}: {why.rstrip('.')}; give a model of "
            "another architecture"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Silences warnings and progress bars of tracing and loading."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
