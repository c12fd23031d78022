"""An EAGLE-3 drafter as a GGUF that llama.cpp and its server load."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Tokens
from edgecs.core.files import part_of, sweep
from edgecs.errors import DistillError
from edgecs_convert.distill.shape import EagleShape
from edgecs_convert.distill.target import TargetFile

NAME = "eagle3"  # of the architecture
MADE = "edgecs.made"  # the key of the figures, as JSON

_NAMES = {
    "output": "output.weight",
    "norm": "output_norm.weight",
    "token_norm": "blk.0.attn_norm.weight",
    "state_norm": "blk.0.attn_norm_2.weight",
    "query": "blk.0.attn_q.weight",
    "key": "blk.0.attn_k.weight",
    "value": "blk.0.attn_v.weight",
    "mix": "blk.0.attn_output.weight",
    "inner_norm": "blk.0.ffn_norm.weight",
    "gate": "blk.0.ffn_gate.weight",
    "up": "blk.0.ffn_up.weight",
    "down": "blk.0.ffn_down.weight",
}
_FUSE = "fc.weight"
# It is read once per verified token and not for drafted ones, and its columns differ in
# size, so it keeps eight bits.
_FUSE_TYPE = gguf.GGMLQuantizationType.Q8_0
TYPES = {
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "f16": gguf.GGMLQuantizationType.F16,
}
"""The types of a drafter's matrices."""


def write_eagle(
    path: Path,
    weights: Mapping[str, NDArray[np.float32]],
    shape: EagleShape,
    ids: Tokens,
    target: TargetFile,
    *,
    kind: str,
    name: str,
    license: str,
) -> None:
    """Write a drafter's file, atomically.

    weights: of `EagleShape.shapes`. ids: the target's id of every row of the output.
    kind: of `TYPES`. Raises DistillError if it cannot be written.
    """
    with _written(path) as writer:
        writer.add_name(name)
        writer.add_license(license)
        _add_sizes(writer, shape, target)
        _copy_fields(writer, target.tokenizer())
        for ours, theirs in _NAMES.items():
            _add(writer, theirs, _laid_out(ours, weights[ours], shape), TYPES[kind])
        _add(writer, _FUSE, weights["fuse"].T, _FUSE_TYPE)
        writer.add_tensor("d2t", ids.astype(np.int64))


def note_made(path: Path, figures: Mapping[str, Any]) -> None:
    """Write figures into a drafter's file. Raises DistillError."""
    reader = gguf.GGUFReader(path)
    own = ("GGUF.", "general.architecture", MADE)
    fields = {k: v for k, v in reader.fields.items() if not k.startswith(own)}
    with _written(path) as writer:
        _copy_fields(writer, fields)
        writer.add_string(MADE, json.dumps(figures))
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)


@contextmanager
def _written(path: Path) -> Iterator[gguf.GGUFWriter]:
    """A writer for a file that replaces `path` when all has been added."""
    sweep(path.parent, path.name)
    part = part_of(path)
    try:
        with closing(gguf.GGUFWriter(part, NAME)) as writer:
            yield writer
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        part.replace(path)
    except OSError as error:
        raise DistillError(
            f"{path} cannot be written ({error.strerror}): make room and start again"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _copy_fields(
    writer: gguf.GGUFWriter, fields: Mapping[str, gguf.ReaderField]
) -> None:
    for key, field in fields.items():
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), field.types[0], inner)


def _add_sizes(writer: gguf.GGUFWriter, shape: EagleShape, target: TargetFile) -> None:
    writer.add_context_length(target.trained_ctx)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.size)
    writer.add_value_length(shape.size)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(shape.size)
    writer.add_rope_freq_base(shape.base)
    writer.add_vocab_size(target.vocab_size)
    writer.add_array(f"{NAME}.target_layers", [*shape.layers])
    writer.add_uint32(f"{NAME}.target_hidden_size", shape.width)
    writer.add_bool(f"{NAME}.norm_before_residual", True)


def _laid_out(
    name: str, weight: NDArray[np.float32], shape: EagleShape
) -> NDArray[np.float32]:
    """A matrix as [out, in], as ggml stores it."""
    if weight.ndim == 1 or name == "output":
        return weight
    if name in ("query", "key"):
        # llama.cpp turns neighbours of this architecture, we turn halves.
        heads = weight.shape[1] // shape.size
        halves = weight.T.reshape(heads, 2, shape.size // 2, -1)
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.T.shape)
    return weight.T


def _add(
    writer: gguf.GGUFWriter,
    name: str,
    weight: NDArray[np.float32],
    kind: gguf.GGMLQuantizationType,
) -> None:
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    if weight.ndim == 1:
        writer.add_tensor(name, weight)
    elif kind is gguf.GGMLQuantizationType.F16:
        writer.add_tensor(name, weight.astype(np.float16))
    else:
        data = gguf.quants.quantize(weight, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
