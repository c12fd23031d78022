"""Occurrences: what followed the last tokens anywhere in the text."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.drafters.copies import GRAM
from edgecs.drafters.maxgram import FOLLOWED, MaxGram
from edgecs.drafters.occurrences import Occurrences

texts = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def ends_of(text: list[int], gram: list[int]) -> list[int]:
    """Positions after the gram, the newest first, that a token follows."""
    n = len(gram)
    return [i for i in range(len(text) - 1, n - 1, -1) if text[i - n : i] == gram]


@given(texts, st.lists(st.integers(0, 3), min_size=1, max_size=GRAM))
def test_followers_are_those_of_the_newest_occurrences(text: list[int], gram):
    mag = MaxGram()
    mag.sync(Context(text))
    places = ends_of(text, gram)
    found = mag.followers(gram)
    if len(gram) < GRAM:
        assert [token for token, _ in found] == [text[i] for i in places[:1]]
        return
    counts = Counter(text[i] for i in places[:FOLLOWED])
    assert dict(found) == counts
    assert [n for _, n in found] == sorted(counts.values(), reverse=True)


@given(texts, st.integers(0, 40))
def test_candidates_differ_and_have_buckets_in_range(text: list[int], depth: int):
    branches = Occurrences(MaxGram())
    branches.sync(Context(text))
    found = branches.successors(text[-GRAM:], depth)
    assert len({token for token, _ in found}) == len(found)
    for token, buckets in found:
        assert token in text
        assert len(set(buckets)) == len(buckets) == 3
        assert 0 <= min(buckets) <= max(buckets) < branches.buckets
    assert len(branches.prior) == branches.buckets


def test_the_copied_token_is_among_the_candidates():
    text = [1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3]
    mag, context = MaxGram(), Context(text)
    branches = Occurrences(mag)
    branches.sync(context)
    tokens = [token for token, _ in branches.successors(text[-GRAM:], 0)]
    assert mag.continuation(context, 1) == tokens[:1] == [5]
    assert tokens == [5, 4]
