"""The inputs and outputs of an exported decoder, read from its session.

The names are those of optimum: input_ids, attention_mask, position_ids,
past_key_values.N.key and .value; logits, present.N.key and .value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from edgecs.errors import ModelError

_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
_LARGEST = 1 << 22  # of one dimension; limits the size of buffers
_CALL = ("input_ids", "attention_mask", "position_ids")


class Cell(NamedTuple):
    """One of a layer's two caches: names, and the shape without its length."""

    past: str
    present: str
    heads: int
    size: int
    dtype: type[np.generic]


class Graph(NamedTuple):
    """A decoder's inputs and outputs."""

    inputs: dict[str, type[np.generic]]  # of input_ids, attention_mask, position_ids
    cells: tuple[Cell, ...]  # key and value of every layer
    logits: type[np.generic]
    width: int | None  # rows of the head; None if the file does not define it


def read_graph(session: ort.InferenceSession) -> Graph:
    """Read a graph; raises ModelError if it is not a decoder with a KV cache."""
    takes = {node.name: node for node in session.get_inputs()}
    gives = {node.name: node for node in session.get_outputs()}
    for name in ("input_ids", "attention_mask"):
        _require(name in takes, f"has no input {name}")
    _require("logits" in gives, "has no output logits")
    cells = []
    for name, node in takes.items():
        past = _PAST.fullmatch(name)
        if past is None:
            _require(name in _CALL, f"has the unsupported input {name}")
            continue
        present = f"present.{past[1]}.{past[2]}"
        _require(present in gives, f"has no output {present} for its input {name}")
        cells.append(_cell(node, present))
    _require(bool(cells), "has no past_key_values (a KV cache)")
    inputs = {name: _dtype(takes[name]) for name in _CALL if name in takes}
    head = gives["logits"]
    return Graph(inputs, tuple(cells), _dtype(head), _head_width(head.shape))


def check_rows(shape: Sequence[Any]) -> None:
    """Raise ModelError unless this is a shape of logits, with one row per token."""
    known = len(shape) == 3 and (not isinstance(shape[2], int) or is_size(shape[2]))
    _require(known, f"has logits of shape {list(shape)}, not [batch, n, rows]")


def is_size(dimension: Any) -> bool:
    """Whether a dimension is a number that is valid for buffers."""
    return isinstance(dimension, int) and 1 <= dimension <= _LARGEST


def _head_width(shape: Sequence[Any]) -> int | None:
    """Rows of the head; None if the file does not define them."""
    if not shape:
        return None
    check_rows(shape)
    return shape[2] if isinstance(shape[2], int) else None


def _cell(node: Any, present: str) -> Cell:
    shape = node.shape
    known = len(shape) == 4 and is_size(shape[1]) and is_size(shape[3])
    _require(
        known,
        f"has the input {node.name} of shape {shape}, not [batch, heads, n, size]",
    )
    return Cell(node.name, present, shape[1], shape[3], _dtype(node))


def _dtype(node: Any) -> type[np.generic]:
    _require(node.type in _TYPES, f"has {node.name} of the unknown type {node.type}")
    return _TYPES[node.type]


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ModelError(
            f"the graph {otherwise}: export it as text-generation-with-past"
        )
