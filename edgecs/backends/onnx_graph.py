"""What an exported decoder takes and gives, read from its session; no numbers yet.

The names are those that optimum writes: input_ids, attention_mask, position_ids,
past_key_values.N.key and .value; logits, present.N.key and .value.
"""

from __future__ import annotations

import re
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
_CALL = ("input_ids", "attention_mask", "position_ids")


class Cell(NamedTuple):
    """One of a layer's two caches: names, and the shape but for its length."""

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
    width: int | None  # rows of the head; None where the file leaves it open


def read_graph(session: ort.InferenceSession) -> Graph:
    """Raises ModelError where this is not a decoder with a KV cache."""
    takes = {node.name: node for node in session.get_inputs()}
    gives = {node.name: node for node in session.get_outputs()}
    for name in ("input_ids", "attention_mask"):
        _require(name in takes, f"has no input {name}")
    _require("logits" in gives, "has no output logits")
    cells = []
    for name, node in takes.items():
        past = _PAST.fullmatch(name)
        if past is None:
            _require(name in _CALL, f"wants the input {name}, which edgecs cannot give")
            continue
        present = f"present.{past[1]}.{past[2]}"
        _require(present in gives, f"has no output {present} for its input {name}")
        cells.append(_cell(node, present))
    _require(bool(cells), "has no past_key_values (a KV cache)")
    inputs = {name: _dtype(takes[name]) for name in _CALL if name in takes}
    head = gives["logits"]
    width = head.shape[-1] if head.shape else None
    return Graph(
        inputs, tuple(cells), _dtype(head), width if isinstance(width, int) else None
    )


def _cell(node: Any, present: str) -> Cell:
    shape = node.shape
    known = len(shape) == 4 and isinstance(shape[1], int) and isinstance(shape[3], int)
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
