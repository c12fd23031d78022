"""The largest logits are those of a sorted row."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgecs.core.logits import best_ids


@given(
    size=st.one_of(st.integers(1, 300), st.sampled_from([511, 512, 513, 640, 5000])),
    k=st.integers(1, 12),
    seed=st.integers(0, 99),
    values=st.sampled_from([3, 1 << 20]),
)
def test_the_best_ids_have_the_largest_logits(size: int, k: int, seed: int, values):
    random = np.random.default_rng(seed)
    row = random.integers(0, values, size).astype(np.float32)
    row[random.random(size) < 0.1] = -np.inf  # tokens that a vocabulary lacks
    found = best_ids(row, k)
    assert len(found) == len(set(found)) == min(k, size)
    assert row[found].tolist() == np.sort(row)[::-1][:k].tolist()
