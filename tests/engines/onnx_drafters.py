"""What ONNX drafters of the tests have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgecs.core.context import Context
from edgecs.core.draft import Draft, score_one
from edgecs.engines.onnx.decoder import OnnxModel
from edgecs.hub.drafter_manifest import DrafterManifest
from edgecs.runtime.loader import Loaded
from tests.onnx_llama import HALF

SIZE = 272
CPU = ["CPUExecutionProvider"]
TRIMMED = [*range(40), 271, *range(100, 140)]  # unsorted on purpose
# Every kind of graph: what write_onnx is asked for, and the tolerance for its rows.
KINDS: dict[str, dict[str, Any]] = {
    "growing": {"cache": "growing"},
    "without positions": {"cache": "growing", "positions": False},
    "deaf to the mask": {"cache": "growing", "masked": False},
    "half": {"cache": "growing", "dtype": HALF},
    "shared": {"cache": "shared"},
}
MANIFEST = DrafterManifest(
    name="tiny",
    description="random",
    license="none",
    file="model.onnx",
    cache="growing",
    window=64,
    vocabulary="0" * 64,
)


def rows_of(honest: Loaded, seen: list[int], draft: list[int]) -> Any:
    """llama.cpp's rows when all it is given are these tokens."""
    honest.target.reset()
    return score_one(honest.target, Context(seen), Draft.chain(draft, "x")).logits


def check(model: OnnxModel, honest: Loaded, context: Context, draft: list[int]) -> None:
    """The model's rows are those of a fresh model that is fed the same window."""
    got = score_one(model, context, Draft.chain(draft, "x")).logits
    first = model._cache.first
    expected = rows_of(honest, context.tokens[first:].tolist(), draft)
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    halved = model._cells._call._logits.dtype == np.float16
    tolerance = 0.05 if halved else 2e-4
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
