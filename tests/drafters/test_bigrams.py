"""Bigrams: what followed a token last, in any answer."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Draft, Rows, Verdict
from edgecs.drafters.bigrams import Bigrams

texts = st.lists(st.integers(0, 4), max_size=40)


def expected(text: list[int], last: int, k: int) -> list[int]:
    """The slow way: the newest occurrence of each token that something followed."""
    found: list[int] = []
    while len(found) < k:
        at = [i for i, token in enumerate(text[:-1]) if token == last]
        if not at:
            break
        last = text[at[-1] + 1]
        found.append(last)
    return found


@given(texts, st.integers(0, 4), st.integers(0, 9))
def test_each_token_is_what_last_followed_the_one_before(
    text: list[int], last: int, k: int
):
    bigrams = Bigrams()
    bigrams.learn(text)
    found = bigrams.propose(Context([9, last]), k).tokens.tolist()
    assert found == expected(text, last, min(k, 4))


@given(texts, st.integers(0, 4))
def test_evidence_has_a_row_for_each_token_in_the_range_of_its_buckets(
    text: list[int], last: int
):
    bigrams = Bigrams()
    bigrams.learn(text)
    found = bigrams.continuation(Context([last]), 4)
    rows = [*bigrams.evidence(found)]
    assert len(rows) == len(found)
    assert all(len({*row}) == 2 and max(row) < bigrams.buckets for row in rows)
    assert len(bigrams.prior) == bigrams.buckets


def test_what_followed_more_often_in_a_row_is_told_apart():
    bigrams, context = Bigrams(), Context([1])
    said = []
    for text in ([1, 2], [1, 2], [1, 2], [1, 3]):
        bigrams.learn(text)
        found = bigrams.continuation(context, 1)
        said.append((found, next(bigrams.evidence(found))[0]))
    assert [found for found, _ in said] == [[2], [2], [2], [3]]
    assert said[0][1] < said[1][1] < said[2][1]
    assert said[3][1] == said[0][1]


def test_it_learns_what_the_target_chose_and_not_what_it_rejected():
    bigrams, rows = Bigrams(), Rows(np.zeros((3, 9), np.float32), 3)
    context = Context([5, 6])
    bigrams.observe(context, Draft.chain([7, 8], "any"), rows, Verdict((0,), 4))
    assert bigrams.continuation(Context([6]), 4) == [7, 4]
    assert bigrams.continuation(Context([8]), 4) == []
    assert bigrams.propose(Context([]), 4) is NOTHING
