"""What the tests of `edgecs distill` have in common."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgecs_convert.distill.data import Wanted
from edgecs_convert.distill.samples import Sample
from tests.conftest import Outcome

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="the extra 'distill' is not installed",
)
needs_export = pytest.mark.skipif(
    importlib.util.find_spec("optimum") is None,
    reason="the extra 'convert' is not installed",
)
Edgecs = Callable[..., Outcome]


def quiet(text: str) -> None:
    """Nobody is told."""


def sample(number: int, start: int, size: int, *, width: int = 4, k: int = 3) -> Sample:
    random = np.random.default_rng(number)
    logits = -np.sort(-random.standard_normal((size, k)), axis=1)
    return Sample(
        number,
        0.0,
        random.integers(0, 50, start + size).astype(np.int32),
        start,
        random.integers(0, 50, (size, k)).astype(np.int32),
        logits.astype(np.float16),
        random.standard_normal((size - 1, width)).astype(np.float16),
    )


def wanted(tokens: int, **more: Any) -> Wanted:
    return Wanted(tokens, most=16, parallel=4, **more)
