"""A head as an ONNX graph, in float32 or with int8 matrices.

    token int64 [n], state float [n, width], position int64 [n],
    mask float [n, m + n], past_key, past_value float [m, kv_width]
    -> logits float [1, rows], next_state float [1, width],
       key, value float [n, kv_width]

Logits and state are those after the last token. Cells are rows, so that a caller can
keep them in one buffer and pass a part of it without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgecs_convert.distill.shape import HeadShape

Weights = Mapping[str, NDArray[np.float32]]
_OPSET = 17
_FLOAT, _INT = TensorProto.FLOAT, TensorProto.INT64


class _Graph:
    """Nodes and constants with generated names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(
        self, kind: str, *inputs: str, n: int = 1, out: str = "", **more: Any
    ) -> Any:
        outs = [out or f"{kind}_{len(self.nodes)}_{i}" for i in range(n)]
        self.nodes.append(helper.make_node(kind, inputs, outs, **more))
        return outs[0] if n == 1 else outs

    def const(self, value: Any, kind: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name


class _Matrix:
    """A weight [in, out], in float32 or as int8 with a scale for each column."""

    def __init__(self, g: _Graph, weight: NDArray[np.float32], int8: bool) -> None:
        self._g, self._int8 = g, int8
        if not int8:
            self._weight = g.const(weight)
            return
        scales = np.abs(weight).max(axis=0) / 127
        scales[scales == 0] = 1
        self._weight = g.const(np.round(weight / scales), np.int8)
        self._scales = g.const(scales)

    def times(self, x: str, out: str = "") -> str:
        """x [n, in] -> [n, out]; with int8, x is quantised dynamically."""
        g = self._g
        if not self._int8:
            return str(g.op("MatMul", x, self._weight, out=out))
        rounded, scale, zero = g.op("DynamicQuantizeLinear", x, n=3)
        product = g.op("MatMulInteger", rounded, self._weight, zero)
        scales = g.op("Mul", scale, self._scales)
        return str(g.op("Mul", g.op("Cast", product, to=_FLOAT), scales, out=out))

    def columns(self, at: str) -> str:
        """The columns at [n] as rows [n, in]: embeddings, if this is the table."""
        g = self._g
        columns = g.op("Transpose", g.op("Gather", self._weight, at, axis=1))
        if not self._int8:
            return str(columns)
        scales = g.op("Unsqueeze", g.op("Gather", self._scales, at), g.const([1], int))
        return str(g.op("Mul", g.op("Cast", columns, to=_FLOAT), scales))


def build(shape: HeadShape, weights: Weights, *, int8: bool) -> onnx.ModelProto:
    """The graph of a head; weights are named as in `HeadShape.shapes`.

    The table is both embedding and output matrix, and is stored once.
    """
    g = _Graph()
    heads, kv, size = shape.heads, shape.kv_heads, shape.size

    def matrix(name: str) -> _Matrix:
        return _Matrix(g, weights[name], int8)

    def norm(x: str, name: str) -> str:
        square = g.op("ReduceMean", g.op("Pow", x, g.const(2)), axes=[-1])
        root = g.op("Sqrt", g.op("Add", square, g.const(shape.epsilon)))
        return str(g.op("Mul", g.op("Div", x, root), g.const(weights[name])))

    def turned(x: str, count: int) -> str:
        """Rotary positions: [n, count * size] -> the same."""
        x = g.op("Reshape", x, g.const([-1, count, 2, size // 2], np.int64))
        first, second = g.op("Split", x, n=2, axis=2)
        real = g.op("Sub", g.op("Mul", first, cosine), g.op("Mul", second, sine))
        imaginary = g.op("Add", g.op("Mul", second, cosine), g.op("Mul", first, sine))
        both = g.op("Concat", real, imaginary, axis=2)
        return str(g.op("Reshape", both, g.const([-1, count * size], np.int64)))

    def by_head(x: str, *groups: int) -> str:
        """[n, groups * size] -> [*groups, n, size], groups as [kv, heads per kv]."""
        x = g.op("Reshape", x, g.const([-1, *groups, size], np.int64))
        return str(g.op("Transpose", x, perm=[1, 2, 0, 3]))

    turns = shape.base ** (-np.arange(0, size, 2) / size)
    place = g.op("Cast", "position", to=_FLOAT)
    place = g.op("Unsqueeze", place, g.const([1, 2, 3], np.int64))
    angle = g.op("Mul", place, g.const(turns))  # [n, 1, 1, size / 2]
    cosine, sine = g.op("Cos", angle), g.op("Sin", angle)

    table = _Matrix(g, np.ascontiguousarray(weights["table"].T), int8)
    token = norm(table.columns("token"), "token_norm")
    both = g.op("Concat", norm("state", "state_norm"), token, axis=1)
    x = matrix("join").times(both)

    y = norm(x, "attention_norm")
    query = by_head(turned(matrix("query").times(y), heads), kv, heads // kv)
    key = turned(matrix("key").times(y), kv)
    g.op("Identity", key, out="key")
    matrix("value").times(y, out="value")
    keys = by_head(g.op("Concat", "past_key", "key", axis=0), kv, 1)
    values = by_head(g.op("Concat", "past_value", "value", axis=0), kv, 1)
    keys = g.op("Transpose", keys, perm=[0, 1, 3, 2])
    scores = g.op("Mul", g.op("MatMul", query, keys), g.const(size**-0.5))
    shares = g.op("Softmax", g.op("Add", scores, "mask"), axis=-1)
    seen = g.op("Transpose", g.op("MatMul", shares, values), perm=[2, 0, 1, 3])
    seen = g.op("Reshape", seen, g.const([-1, shape.width], np.int64))
    x = g.op("Add", x, matrix("mix").times(seen))

    # The rest is computed only for the last token.
    x = g.op("Gather", x, g.const([-1], np.int64), axis=0)
    y = norm(x, "inner_norm")
    gate = matrix("gate").times(y)
    y = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), matrix("up").times(y))
    x = g.op("Add", x, matrix("down").times(y))
    state = norm(x, "norm")
    g.op("Identity", state, out="next_state")
    logits = table.times(state)
    # The row of unknown tokens is never chosen.
    g.op(
        "Slice",
        logits,
        g.const([0], np.int64),
        g.const([shape.rows], np.int64),
        g.const([1], np.int64),
        out="logits",
    )
    return _model(g, shape)


def _model(g: _Graph, shape: HeadShape) -> onnx.ModelProto:
    def info(name: str, kind: int, *sizes: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, sizes)

    width, kv = shape.width, shape.kv_width
    graph = helper.make_graph(
        g.nodes,
        "head",
        [
            info("token", _INT, "n"),
            info("state", _FLOAT, "n", width),
            info("position", _INT, "n"),
            info("mask", _FLOAT, "n", "total"),
            info("past_key", _FLOAT, "m", kv),
            info("past_value", _FLOAT, "m", kv),
        ],
        [
            info("logits", _FLOAT, 1, shape.rows),
            info("next_state", _FLOAT, 1, width),
            info("key", _FLOAT, "n", kv),
            info("value", _FLOAT, "n", kv),
        ],
        g.constants,
    )
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(graph, opset_imports=[opset], producer_name="edgecs")
    model.ir_version = 8  # readable by the oldest ONNX Runtime that edgecs supports
    onnx.checker.check_model(model)
    return model
