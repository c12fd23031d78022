"""Random weights of every type that the kernels support, for their tests."""

from __future__ import annotations

from typing import NamedTuple

import gguf
import numpy as np
from numpy.typing import NDArray

from edgecs.engines.llama.kernels import KernelSet

Bytes = NDArray[np.uint8]


class BlockType(NamedTuple):
    """Layout of ggml's blocks of a type.

    halves: offsets of the scales, 16-bit floats. exponent: offset of a power of two.
    """

    weights: int
    size: int  # bytes
    halves: tuple[int, ...] = ()
    exponent: int | None = None


TYPES: dict[str, BlockType] = {
    "Q4_K": BlockType(256, 144, (0, 2)),
    "Q5_K": BlockType(256, 176, (0, 2)),
    "Q6_K": BlockType(256, 210, (208,)),
    "Q8_0": BlockType(32, 34, (0,)),
    "Q4_0": BlockType(32, 18, (0,)),
    "Q4_1": BlockType(32, 20, (0, 2)),
    "Q5_0": BlockType(32, 22, (0,)),
    "Q5_1": BlockType(32, 24, (0, 2)),
    "IQ4_NL": BlockType(32, 18, (0,)),
    "MXFP4": BlockType(32, 17, (), 0),
    "BF16": BlockType(1, 2),
    "F16": BlockType(1, 2),
    "F32": BlockType(1, 4),
}


def random_weights(
    kind: str, rows: int, width: int, random: np.random.Generator
) -> Bytes:
    """Rows of a matrix with random quants and scales of about 0.01, [rows, bytes]."""
    block = TYPES[kind]
    if block.weights == 1:
        weights = random.standard_normal((rows, width), dtype=np.float32)
        packed = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[kind])
        return np.asarray(packed).view(np.uint8).reshape(rows, -1)
    shape = rows, width // block.weights, block.size
    data = random.integers(0, 256, shape, dtype=np.uint8)
    for at in block.halves:
        scales = random.normal(0, 0.01, shape[:2]).astype(np.float16)
        data[:, :, at : at + 2] = scales[..., None].view(np.uint8)
    if block.exponent is not None:
        data[:, :, block.exponent] = random.integers(118, 124, shape[:2])
    return data.reshape(rows, -1)


def floats_of(kind: str, matrix: Bytes) -> NDArray[np.float64]:
    """The dequantised values of a matrix, [rows, width]."""
    plain = {"F32": np.float32, "F16": np.float16}
    if kind in plain:
        return matrix.view(plain[kind]).astype(np.float64)
    found = gguf.quants.dequantize(matrix, gguf.GGMLQuantizationType[kind])
    return np.asarray(found, dtype=np.float64).reshape(len(matrix), -1)


def errors(
    kernels: KernelSet,
    kind: str,
    random: np.random.Generator,
    *,
    rows: int = 40,
    width: int = 512,
) -> tuple[float, bool]:
    """Compare a product of random numbers with one in double precision.

    Returns the relative error (root of squares), and whether each column has the same
    bits for every number of columns.
    """
    matrix = random_weights(kind, rows, width, random)
    x = random.standard_normal((kernels.columns, width), dtype=np.float32)
    number = int(gguf.GGMLQuantizationType[kind])
    y = np.concatenate(
        [kernels.multiply(number, matrix, width, one[None]) for one in x]
    )
    same = all(
        np.array_equal(kernels.multiply(number, matrix, width, x[:n]), y[:n])
        for n in range(1, len(x) + 1)
    )
    expected = x.astype(np.float64) @ floats_of(kind, matrix).T
    error = np.linalg.norm(y - expected) / np.linalg.norm(expected)
    return float(error), same
