"""The tokens that a drafter would have chosen next: siblings in a tree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.errors import NoNumbers
from edgecs.sampling.chain import chooser, greedy
from edgecs.sampling.settings import Sampling

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.8, 2.0]),
    repeat_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 99),
)


@given(samplings, st.integers(2, 200), st.integers(1, 5), st.integers(0, 99))
def test_each_is_the_choice_where_those_before_it_are_missing(
    sampling: Sampling, size: int, k: int, seed: int
):
    random = np.random.default_rng(seed)
    row = random.standard_normal(size).astype(np.float32) * 3
    tokens = random.integers(0, size, 9).astype(np.int32)
    choose = chooser(sampling, size)
    found = choose.alternatives(row, tokens, k)
    assert len(found) == min(k, size - 1)
    left = row.copy()
    left[choose(left, tokens)] = -np.inf
    for token, p in found:
        assert token == choose(left, tokens)
        assert 0 <= p <= 1
        if sampling.temperature or sampling.repeat_penalty == 1:
            assert p == pytest.approx(choose.confidence(row, tokens, token), rel=1e-4)
        left[token] = -np.inf


@given(st.integers(0, 99), st.integers(1, 4))
def test_truncated_tokens_are_not_proposed(seed: int, top_k: int):
    row = np.random.default_rng(seed).standard_normal(50).astype(np.float32)
    choose = chooser(Sampling(1.0, top_k=top_k, seed=seed), 50)
    tokens = np.array([1], np.int32)
    found = [token for token, _ in choose.alternatives(row, tokens, 9)]
    best = set(np.argsort(-row)[:top_k].tolist())
    assert {choose(row, tokens), *found} == best
    assert len(found) == top_k - 1


def test_a_row_without_numbers_has_none():
    with pytest.raises(NoNumbers):
        greedy.alternatives(np.full(3, np.nan, np.float32), np.array([1], np.int32), 2)
