"""edgecs's kernels by themselves: every type and instruction set that runs here.

The yardstick is double precision, with a bound that follows from how activations are
rounded; and ggml's own dot products.
"""

from __future__ import annotations

import ctypes
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgecs.engines.llama import kernels as own_kernels
from edgecs.engines.llama.kernel_types import TYPES, floats_of, random_weights
from edgecs.engines.llama.kernels import Attention, KernelSet, kernel_sets
from tests.native_library import library

Floats = NDArray[np.float32]
SETS = kernel_sets(library())
KINDS = sorted(TYPES)
EXACT = ("F32", "F16", "BF16")  # activations stay floats
ROUND = {("avx512bf16", "BF16"): 2**-9}  # share by which one may be rounded

each_set = pytest.mark.parametrize("kernels", SETS, ids=lambda kernels: kernels.name)
each_kind = pytest.mark.parametrize("kind", KINDS)
seeds = st.integers(0, 2**32 - 1)


def number(kind: str) -> int:
    return int(gguf.GGMLQuantizationType[kind])


def bound(
    name: str, kind: str, weights: NDArray[np.float64], x: Floats
) -> NDArray[np.float64]:
    """How far a product may be from one in double precision, [columns, rows].

    name: of the instruction set. A rounded activation is off by half a step, a 127th
    of the largest one of its block.
    """
    size = np.abs(x.astype(np.float64))
    # Roundings of 32-bit sums.
    allowed = size * (4e-6 + ROUND.get((name, kind), 0.0))
    if kind not in EXACT:
        block = 256 if kind in ("Q4_K", "Q5_K", "Q6_K") else 32
        most = size.reshape(len(x), -1, block).max(axis=2, keepdims=True)
        steps = np.broadcast_to(most / 127, (*most.shape[:2], block))
        allowed = allowed + steps.reshape(size.shape) * 0.5001
    return np.asarray(allowed @ np.abs(weights).T) + 1e-30


def activations(random: np.random.Generator, columns: int, width: int) -> Floats:
    """Columns of all sizes, with outliers, zeros and whole blocks of zeros."""
    x = random.standard_normal((columns, width), dtype=np.float32)
    x *= np.where(random.random((columns, width)) < 0.02, 30, 1).astype(np.float32)
    x *= random.choice([1e-30, 1e-4, 1, 1e4], (columns, 1)).astype(np.float32)
    x[random.random((columns, width)) < 0.1] = 0
    x.reshape(columns, -1, 32)[random.random((columns, width // 32)) < 0.1] = 0
    return x


@each_set
@each_kind
@settings(max_examples=12)
@given(seed=seeds)
def test_products_are_those_of_double_precision(kernels: KernelSet, kind, seed: int):
    random = np.random.default_rng(seed)
    rows, width = int(random.integers(1, 50)), 256 * int(random.integers(1, 5))
    matrix = random_weights(kind, rows, width, random)
    weights = floats_of(kind, matrix)
    x = activations(random, kernels.columns, width)
    for n in (1, kernels.columns):
        y = kernels.multiply(number(kind), matrix, width, x[:n])
        off = np.abs(y - x[:n].astype(np.float64) @ weights.T)
        assert (off <= bound(kernels.name, kind, weights, x[:n])).all()


@each_set
@each_kind
def test_extreme_blocks(kernels: KernelSet, kind: str):
    """All bits set or clear, the largest and the smallest scales."""
    block, width = TYPES[kind], 256
    random = np.random.default_rng(5)
    x = activations(random, 1, width)
    for byte in (0x00, 0x7F, 0x80, 0xFF):
        for half in (0x0000, 0x0001, 0x03FF, 0x7BFF, 0x8001, 0xFBFF):
            size = width // block.weights * block.size
            matrix = np.full((3, size), byte, dtype=np.uint8)
            blocks = matrix.reshape(3, -1, block.size)
            for at in block.halves:
                blocks[:, :, at : at + 2] = (half & 255, half >> 8)
            if block.exponent is not None:
                blocks[:, :, block.exponent] = min(half & 255, 200)
            if kind in ("F16", "BF16") and byte in (0x7F, 0xFF):
                continue  # no numbers
            if kind == "F32" and byte == 0xFF:
                continue
            weights = floats_of(kind, matrix)
            y = kernels.multiply(number(kind), matrix, width, x)
            off = np.abs(y - x.astype(np.float64) @ weights.T)
            assert (off <= bound(kernels.name, kind, weights, x)).all(), (byte, half)


@each_set
@each_kind
@settings(max_examples=6)
@given(seed=seeds)
def test_a_columns_bits_do_not_depend_on_the_others(kernels: KernelSet, kind, seed):
    random = np.random.default_rng(seed)
    width = 256 * int(random.integers(1, 4))
    matrix = random_weights(kind, 2 * 16 + 3, width, random)
    x = activations(random, kernels.columns, width)
    alone = [kernels.multiply(number(kind), matrix, width, c[None])[0] for c in x]
    for n in range(2, kernels.columns + 1):
        y = kernels.multiply(number(kind), matrix, width, x[:n])
        assert y.tobytes() == np.stack(alone[:n]).tobytes()


@each_set
@each_kind
def test_what_is_no_number_stays_in_its_row_and_column(kernels: KernelSet, kind: str):
    block, width = TYPES[kind], 256
    random = np.random.default_rng(7)
    matrix = random_weights(kind, 5, width, random)
    x = random.standard_normal((kernels.columns, width), dtype=np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        spoilt = x.copy()
        spoilt[-1, 40] = bad
        y = kernels.multiply(number(kind), matrix, width, spoilt)
        assert np.isfinite(y[:-1]).all()
        assert not np.isfinite(y[-1]).any()
    if block.halves:
        matrix[2, block.halves[0] : block.halves[0] + 2] = (0x00, 0x7E)
        y = kernels.multiply(number(kind), matrix, width, x)
        assert np.isnan(y[:, 2]).all()
        assert np.isfinite(np.delete(y, 2, axis=1)).all()


@each_set
@pytest.mark.parametrize(
    ("kind", "width", "columns"), [("Q4_K", 128, 1), ("Q8_0", 32, 1), ("Q8_0", 64, 99)]
)
def test_what_no_kernel_takes(kernels: KernelSet, kind: str, width: int, columns: int):
    matrix = np.zeros((4, 4096), dtype=np.uint8)
    with pytest.raises(ValueError, match="no kernel"):
        kernels.multiply(number(kind), matrix, width, np.zeros((columns, width), "f4"))
    with pytest.raises(ValueError, match="no kernel"):
        kernels.multiply(10, matrix, 256, np.zeros((1, 256), "f4"))  # Q2_K


class _Traits(ctypes.Structure):
    """ggml_type_traits_cpu."""

    _fields_ = (
        ("from_float", ctypes.c_void_p),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("rows", ctypes.c_int64),
    )


def dot_of_ggml(kind: str, matrix: NDArray[np.uint8], x: Floats) -> Floats:
    """The products of rows and one column as ggml's plain kernels have them."""
    own_kernels.kernel_sets(library())  # llama.cpp is loaded
    cpu = ctypes.CDLL("libggml-cpu.so.0")
    cpu.ggml_get_type_traits_cpu.restype = ctypes.POINTER(_Traits)
    traits = cpu.ggml_get_type_traits_cpu(number(kind)).contents
    theirs = cpu.ggml_get_type_traits_cpu(traits.vec_dot_type).contents
    address, size = ctypes.c_void_p, ctypes.c_size_t
    column = np.zeros(len(x) * 8, dtype=np.uint8)
    if theirs.from_float:
        make = ctypes.CFUNCTYPE(None, address, address, ctypes.c_int64)
        make(theirs.from_float)(x.ctypes.data, column.ctypes.data, len(x))
    else:
        column = x.view(np.uint8)
    kinds: list[Any] = [ctypes.c_int, address, size, address, size, address, size]
    dot = ctypes.CFUNCTYPE(None, *kinds, ctypes.c_int)(traits.vec_dot)
    y = np.zeros(len(matrix), dtype=np.float32)
    for i, row in enumerate(matrix):
        at = y[i:].ctypes.data
        dot(len(x), at, 0, row.ctypes.data, 0, column.ctypes.data, 0, 1)
    return y


@each_set
@each_kind
def test_products_are_close_to_those_of_ggml(kernels: KernelSet, kind: str):
    """Ours are no further from double precision than theirs, which round more."""
    random = np.random.default_rng(11)
    matrix = random_weights(kind, 24, 1024, random)
    x = random.standard_normal((1, 1024), dtype=np.float32)
    expected = x.astype(np.float64) @ floats_of(kind, matrix).T
    ours = kernels.multiply(number(kind), matrix, 1024, x)
    theirs = dot_of_ggml(kind, np.ascontiguousarray(matrix), x[0])[None]
    size = np.linalg.norm(expected)
    assert np.linalg.norm(ours - theirs) / size < 0.03
    error, other = (np.linalg.norm(y - expected) / size for y in (ours, theirs))
    assert error <= 1.15 * other + 1e-6


# -------------------------------------------------------------------------- attention

CACHES = ("F32", "F16", "BF16", "Q8_0")


class Node:
    """Random queries and a cache, and what they should give in double precision."""

    def __init__(self, seed: int, kind: str, **fixed: Any) -> None:
        random = np.random.default_rng(seed)
        draw = {
            "key": 32 * int(random.integers(1, 5)),
            "value": 32 * int(random.integers(1, 5)),
            "rows": int(random.integers(1, 12)),
            "kv_heads": int(random.integers(1, 4)),
            "group": int(random.integers(1, 5)),
            "cells": int(random.integers(1, 700)),
            "cap": float(random.choice([0.0, 3.0])),
            "bias": float(random.choice([0.0, 8.0])),
            "sinks": bool(random.integers(2)),
        } | fixed
        self.rows, self.cells = draw["rows"], draw["cells"]
        self.heads, self.kv_heads = draw["kv_heads"] * draw["group"], draw["kv_heads"]
        self.cap, self.bias = draw["cap"], draw["bias"]
        self.scale = float(draw["key"] ** -0.5)
        shape = self.cells, self.kv_heads
        self.kind = kind
        self.k = self._cache(random.standard_normal((*shape, draw["key"])), kind)
        self.v = self._cache(random.standard_normal((*shape, draw["value"])), kind)
        q = random.standard_normal((self.rows, self.heads, draw["key"]))
        self.q = (3 * q).astype(np.float32)
        seen = random.random((self.rows, self.cells)) < 0.7
        seen[:, random.integers(self.cells)] = True
        distance = -random.integers(0, 20, seen.shape) if self.bias else 0
        self.mask = np.where(seen, distance, -np.inf).astype(np.float16)
        self.sinks = None
        if draw["sinks"]:
            self.sinks = random.standard_normal(self.heads).astype(np.float32)

    @staticmethod
    def _cache(numbers: NDArray[np.float64], kind: str) -> NDArray[np.uint8]:
        """[cells, heads, bytes]."""
        dtype = gguf.GGMLQuantizationType[kind]
        if kind == "F16":
            return numbers.astype(np.float16).view(np.uint8)
        packed = gguf.quants.quantize(numbers.astype(np.float32), dtype)
        return np.ascontiguousarray(packed).view(np.uint8)

    def _numbers(self, cache: NDArray[np.uint8]) -> NDArray[np.float64]:
        flat = floats_of(
            self.kind, np.ascontiguousarray(cache).reshape(-1, cache.shape[-1])
        )
        return flat.reshape(*cache.shape[:2], -1)

    def expected(self) -> NDArray[np.float64]:
        k, v = self._numbers(self.k), self._numbers(self.v)
        group = self.heads // self.kv_heads
        y = np.zeros((self.rows, self.heads, v.shape[-1]))
        power = 1 << (self.heads.bit_length() - 1)
        for head in range(self.heads):
            slope = 1.0
            if self.bias:
                at = head + 1 if head < power else 2 * (head - power) + 1
                slope = 2 ** (-self.bias / (power if head < power else 2 * power) * at)
            s = self.q[:, head].astype(np.float64) @ k[:, head // group].T * self.scale
            if self.cap:
                s = self.cap * np.tanh(s / self.cap)
            s = s + slope * self.mask.astype(np.float64)
            if self.sinks is not None:
                sink = np.full((self.rows, 1), self.sinks[head], dtype=np.float64)
                s = np.concatenate([s, sink], axis=1)
            w = np.exp(s - s.max(axis=1, keepdims=True))
            w /= w.sum(axis=1, keepdims=True)
            y[:, head] = w[:, : self.cells] @ v[:, head // group]
        return y

    def computed(self, kernels: KernelSet, together: int) -> Floats:
        """Rows computed `together` at a time."""
        width = self._numbers(self.v).shape[-1]
        y = np.full((self.rows, self.heads, width), np.nan, dtype=np.float32)
        node = Attention()
        node.key_width, node.value_width = self.q.shape[-1], width
        node.rows, node.heads, node.kv_heads = self.rows, self.heads, self.kv_heads
        node.cells, node.scale = self.cells, self.scale
        node.bias, node.cap = self.bias, self.cap
        node.key_type = node.value_type = number(self.kind)
        for name, array in (
            ("query", self.q),
            ("key", self.k),
            ("value", self.v),
            ("output", y),
        ):
            getattr(node, name)[:] = array.strides[:2]
        node.mask_row = self.mask.strides[0]
        for name in ("q", "k", "v", "mask"):
            setattr(node, name, getattr(self, name).ctypes.data)
        node.sinks = None if self.sinks is None else self.sinks.ctypes.data
        node.y = y.ctypes.data
        assert kernels.attend(node, together)
        return y


@each_set
@pytest.mark.parametrize("kind", CACHES)
@settings(max_examples=12)
@given(seed=seeds)
def test_attention_is_that_of_double_precision(kernels: KernelSet, kind: str, seed):
    node = Node(seed, kind)
    y, expected = node.computed(kernels, 1), node.expected()
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)


@each_set
@pytest.mark.parametrize("kind", CACHES)
@settings(max_examples=8)
@given(seed=seeds)
def test_a_row_of_attention_does_not_depend_on_the_others(kernels, kind, seed: int):
    node = Node(seed, kind, rows=9, group=2)
    alone = node.computed(kernels, 1)
    for together in (2, 3, 9):
        assert node.computed(kernels, together).tobytes() == alone.tobytes()


@each_set
def test_keys_that_a_row_may_not_see_need_be_no_numbers(kernels: KernelSet):
    node = Node(4, "F32", rows=6, cells=300)
    node.mask[:2, 40] = -np.inf, 0
    before = node.computed(kernels, 6)
    node.k.view(np.float32)[40] = np.nan
    after = node.computed(kernels, 6)
    assert after[0].tobytes() == before[0].tobytes()
    assert np.isnan(after[1]).all()


@each_set
@pytest.mark.parametrize("width", [8, 24, 72, 80, 96, 256])
def test_heads_of_any_width(kernels: KernelSet, width: int):
    node = Node(width, "F16", key=width, value=width)
    y = node.computed(kernels, 1)
    np.testing.assert_allclose(y, node.expected(), rtol=2e-5, atol=2e-5)


@each_set
def test_cells_that_nobody_sees_do_not_count(kernels: KernelSet):
    node = Node(3, "F16", cells=600, sinks=False, rows=3)
    node.mask[:, 300:] = -np.inf
    node.mask[:, 5] = 0
    before = node.computed(kernels, 3)
    node.mask, node.k, node.v = node.mask[:, :320], node.k[:320], node.v[:320]
    node.cells = 320
    assert node.computed(kernels, 3).tobytes() == before.tobytes()


@each_set
def test_a_row_that_sees_nothing_is_zero(kernels: KernelSet):
    node = Node(4, "F16", rows=2, sinks=False)
    node.mask[1] = -np.inf
    y = node.computed(kernels, 2)
    assert not y[1].any()
    assert y[0].any()


@each_set
def test_scores_of_all_sizes(kernels: KernelSet):
    """Differences beyond what exp can show, and scores that overflow."""
    node = Node(6, "F32", rows=4, cap=0.0, bias=0.0)
    for factor in (1e-30, 1e3, 1e6):
        node.q = (node.q / np.abs(node.q).max() * factor).astype(np.float32)
        y = node.computed(kernels, 4)
        assert np.isfinite(y).all()
        if factor < 1e6:
            np.testing.assert_allclose(y, node.expected(), rtol=1e-3, atol=1e-3)


@each_set
def test_more_rows_than_are_computed_together(kernels: KernelSet):
    node = Node(8, "F16", rows=2)
    with pytest.raises(AssertionError):
        node.computed(kernels, 10_000)
