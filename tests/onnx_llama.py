"""Builds ONNX graphs of the tiny random Llama in a GGUF: the same weights, elsewhere.

`write_onnx` makes either kind of graph that a drafter may have, and the odd ones that a
drafter must survive.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

HALF, FLOAT, INT = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT64
INT32, BOOL = TensorProto.INT32, TensorProto.BOOL


class _Builder:
    """Nodes and constants under names that are made up."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(
        self, kind: str, *inputs: str, out: str = "", n: int = 1, **more: Any
    ) -> Any:
        outs = [out or f"{kind}_{len(self.nodes)}_{i}" for i in range(n)]
        self.nodes.append(helper.make_node(kind, inputs, outs, **more))
        return outs[0] if n == 1 else outs

    def const(self, value: Any, kind: Any = np.int64) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def weight(self, matrix: NDArray[np.float32]) -> str:
        return self.const(matrix, np.float32)


def write_onnx(
    path: Path,
    weights: Path,
    *,
    cache: str = "growing",
    rows: Sequence[int] | None = None,
    padding: int = 0,
    positions: bool = True,
    masked: bool = True,
    dtype: int = FLOAT,
    base: float = 10000.0,
) -> Path:
    """rows: token ids that the drafter has. padding: random rows added after them.

    positions=False: no input position_ids. masked=False: the mask is not looked at.
    dtype: of cells and logits.
    """
    reader = gguf.GGUFReader(weights)
    tensors = {t.name: np.array(t.data) for t in reader.tensors}

    def number(key: str) -> Any:
        field = reader.get_field(f"llama.{key}")
        assert field is not None
        return field.contents()

    heads, kv_heads = number("attention.head_count"), number("attention.head_count_kv")
    size = number("embedding_length") // heads
    epsilon = number("attention.layer_norm_rms_epsilon")
    layers = number("block_count")
    random = np.random.default_rng(1)

    def chosen(name: str) -> NDArray[np.float32]:
        matrix = tensors[name] if rows is None else tensors[name][list(rows)]
        extra = random.standard_normal((padding, matrix.shape[1]), dtype=np.float32)
        return np.concatenate([matrix, extra])

    g = _Builder()
    past_length = g.op(
        "Gather", g.op("Shape", "past_key_values.0.key"), g.const(2), axis=0
    )
    length = g.op("Gather", g.op("Shape", "input_ids"), g.const(1), axis=0)
    total = g.op("Add", past_length, length)
    one, zero = g.const(1), g.const(0)
    asked = g.op("Range", past_length, total, one)
    if cache == "shared":
        counted = g.op("ReduceSum", "attention_mask", g.const([1]), keepdims=0)
        seqlens = g.op("Cast", g.op("Sub", counted, one), to=INT32)
        width = g.op("Gather", g.op("Shape", "attention_mask"), one, axis=0)
        length32 = g.op("Cast", width, to=INT32)
        angles = np.outer(
            np.arange(4096), base ** (-np.arange(0, size, 2) / size)
        ).astype(np.float32)
        cosines, sines = g.weight(np.cos(angles)), g.weight(np.sin(angles))
    else:
        place = "position_ids" if positions else g.op("Unsqueeze", asked, zero)
        inverse = g.weight(base ** (-np.arange(0, size, 2) / size))
        angle = g.op(
            "Mul",
            g.op("Unsqueeze", g.op("Cast", place, to=FLOAT), g.const([-1])),
            inverse,
        )
        angle = g.op("Unsqueeze", angle, g.const([1]))  # [1, 1, n, size / 2]
        cosine, sine = g.op("Cos", angle), g.op("Sin", angle)
        seen = g.op(
            "LessOrEqual",
            g.op("Unsqueeze", g.op("Range", zero, total, one), zero),
            g.op("Unsqueeze", asked, one),
        )
        if masked:
            seen = g.op("And", seen, g.op("Cast", "attention_mask", to=BOOL))
        bias = g.op("Where", seen, g.weight(0), g.weight(-1e30))  # [n, total]

    def norm(x: str, name: str) -> str:
        mean = g.op("ReduceMean", g.op("Mul", x, x), g.const([-1]))
        root = g.op("Sqrt", g.op("Add", mean, g.weight(epsilon)))
        return str(g.op("Mul", g.op("Div", x, root), g.weight(tensors[name])))

    def linear(x: str, name: str) -> str:
        return str(g.op("MatMul", x, g.weight(tensors[name].T)))

    def split(x: str, count: int) -> str:
        shaped = g.op("Reshape", x, g.const([1, -1, count, size]))
        return str(g.op("Transpose", shaped, perm=[0, 2, 1, 3]))

    def rotated(x: str, count: int) -> str:
        pairs = g.op("Reshape", x, g.const([1, count, -1, size // 2, 2]))
        even, odd = (g.op("Gather", pairs, g.const(i), axis=4) for i in (0, 1))
        turned = (
            g.op("Sub", g.op("Mul", even, cosine), g.op("Mul", odd, sine)),
            g.op("Add", g.op("Mul", even, sine), g.op("Mul", odd, cosine)),
        )
        last = [g.op("Unsqueeze", part, g.const([-1])) for part in turned]
        both = g.op("Concat", *last, axis=-1)
        return str(g.op("Reshape", both, g.const([1, count, -1, size])))

    def grown(layer: int, kind: str, new: str) -> str:
        past = g.op("Cast", f"past_key_values.{layer}.{kind}", to=FLOAT)
        whole = g.op("Concat", past, new, axis=2)
        kept = g.op("Cast", whole, to=dtype, out=f"present.{layer}.{kind}")
        return str(g.op("Cast", kept, to=FLOAT))

    def attention(layer: int, query: str, key: str, value: str) -> str:
        query = rotated(split(query, heads), heads)
        key = grown(layer, "key", rotated(split(key, kv_heads), kv_heads))
        value = grown(layer, "value", split(value, kv_heads))
        group = heads // kv_heads
        query = g.op("Reshape", query, g.const([1, kv_heads, group, -1, size]))
        key = g.op(
            "Transpose", g.op("Unsqueeze", key, g.const([2])), perm=[0, 1, 2, 4, 3]
        )
        scores = g.op("Mul", g.op("MatMul", query, key), g.weight(size**-0.5))
        weight = g.op("Softmax", g.op("Add", scores, bias), axis=-1)
        mixed = g.op("MatMul", weight, g.op("Unsqueeze", value, g.const([2])))
        mixed = g.op("Reshape", mixed, g.const([1, heads, -1, size]))
        mixed = g.op("Transpose", mixed, perm=[0, 2, 1, 3])
        return str(g.op("Reshape", mixed, g.const([1, -1, heads * size])))

    def fused(layer: int, query: str, key: str, value: str) -> str:
        out = f"mixed.{layer}"
        present = [f"present.{layer}.key", f"present.{layer}.value"]
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        inputs = [query, key, value, *past, seqlens, length32, cosines, sines]
        node = helper.make_node(
            "GroupQueryAttention",
            inputs,
            [out, *present],
            domain="com.microsoft",
            num_heads=heads,
            kv_num_heads=kv_heads,
            do_rotary=1,
            rotary_interleaved=1,
        )
        g.nodes.append(node)
        return out

    attend = fused if cache == "shared" else attention
    x = g.op("Gather", g.weight(chosen("token_embd.weight")), "input_ids", axis=0)
    for layer in range(layers):
        block = f"blk.{layer}."
        normed = norm(x, block + "attn_norm.weight")
        parts = [linear(normed, f"{block}attn_{p}.weight") for p in "qkv"]
        mixed = attend(layer, *parts)
        x = g.op("Add", x, linear(mixed, block + "attn_output.weight"))
        normed = norm(x, block + "ffn_norm.weight")
        gate = linear(normed, block + "ffn_gate.weight")
        gate = g.op("Mul", gate, g.op("Sigmoid", gate))
        inner = g.op("Mul", gate, linear(normed, block + "ffn_up.weight"))
        x = g.op("Add", x, linear(inner, block + "ffn_down.weight"))
    head = g.weight(chosen("output.weight").T)
    logits = g.op("MatMul", norm(x, "output_norm.weight"), head)
    g.op("Cast", logits, to=dtype, out="logits")

    info = helper.make_tensor_value_info
    names = ["input_ids", "attention_mask"]
    if positions and cache == "growing":
        names.append("position_ids")
    inputs = [info(name, INT, ["batch", f"{name} length"]) for name in names]
    outputs = [info("logits", dtype, ["batch", "n", len(chosen("output.weight"))])]
    for layer in range(layers):
        for kind in ("key", "value"):
            shape = ["batch", kv_heads, "past", size]
            inputs.append(info(f"past_key_values.{layer}.{kind}", dtype, shape))
            shape[2] = "total"
            outputs.append(info(f"present.{layer}.{kind}", dtype, shape))
    graph = helper.make_graph(g.nodes, "llama", inputs, outputs, g.constants)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.save(model, path)
    return path
