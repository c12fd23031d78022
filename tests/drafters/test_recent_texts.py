"""Recent texts: the longest match among them, and no more room than given."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.drafters import recent_texts as module
from edgecs.drafters.copies import GRAM, LONGEST
from edgecs.drafters.recent_texts import RecentTexts

ROOM = 64
ids = st.integers(0, 3)
texts_of = st.lists(st.lists(ids, max_size=40), max_size=8)


def matched(text: list[int], at: int, end: list[int]) -> int:
    """How many tokens up to `at` are those at the end of another text."""
    n = 0
    while n < min(at + 1, len(end), LONGEST) and text[at - n] == end[-1 - n]:
        n += 1
    return n


@given(texts_of, st.lists(ids, max_size=50), st.integers(1, 6))
def test_it_is_the_longest_match_of_all_texts(
    texts: list[list[int]], end: list[int], k: int
):
    store = RecentTexts(1 << 10)
    for text in texts:
        store.add(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CANDIDATES", 1 << 10)
        found = store.match(end, k)
    places = [
        (matched(text, at, end), text[at + 1 : at + 1 + k])
        for text in texts
        for at in range(len(text) - 1)
    ]
    longest = max((n for n, _ in places), default=0)
    if longest < GRAM:
        assert found is None
        return
    assert found is not None
    best = [follows for n, follows in places if n == longest]
    firsts = Counter(follows[0] for follows in best)
    assert (found.length, found.times) == (longest, len(best))
    assert found.agreeing == max(firsts.values()) == firsts[found.tokens[0]]
    newest = [follows for follows in best if follows[0] == found.tokens[0]][-1]
    assert found.tokens == newest


@given(texts_of, st.lists(ids, min_size=GRAM, max_size=9), st.integers(1, 80))
def test_what_it_says_stands_in_a_text_even_after_many(
    texts: list[list[int]], end: list[int], k: int
):
    store = RecentTexts(ROOM)
    for text in texts:
        store.add(text)
        found = store.match(end, k)
        if found is not None:
            assert GRAM <= found.length <= len(end)
            assert 1 <= found.agreeing <= found.times <= module.CANDIDATES
            assert 1 <= len(found.tokens) <= k
            said = [*end[len(end) - found.length :], *found.tokens]
            assert any(
                other[i : i + len(said)] == said
                for other in texts
                for i in range(len(other))
            )


def test_the_oldest_texts_make_room():
    store = RecentTexts(ROOM)
    texts = [list(range(100 * i, 100 * i + 20)) for i in range(10)]
    for text in texts:
        store.add(text)
    known = [store.match(text[:8], 4) for text in texts]
    assert not any(known[:-4])  # 64 tokens have room for three texts
    for text, found in zip(texts[-3:], known[-3:], strict=True):
        assert found is not None
        assert found.tokens == text[8:12]
    store.add(list(range(1000, 1000 + 3 * ROOM)))  # larger than the room
    end = 1000 + 3 * ROOM
    assert store.match([end - 7, end - 6, end - 5], 9) == (
        3,
        1,
        1,
        [end - 4, end - 3, end - 2, end - 1],
    )
    assert store.match([1001, 1002, 1003], 9) is None


def test_frequent_continuations_come_first():
    store = RecentTexts(ROOM)
    for last in (7, 8, 7, 9):
        store.add([1, 2, 3, last, last])
    assert store.match([0, 1, 2, 3], 2) == (3, 4, 2, [7, 7])
    store.add([1, 2, 3, 9, 5])
    assert store.match([0, 1, 2, 3], 2) == (3, 5, 2, [9, 5])  # the newest of the two


@pytest.mark.parametrize("room", [0, 4, 12, -8])
def test_a_room_that_is_no_power_of_two_is_refused(room: int):
    with pytest.raises(ValueError, match="power of two"):
        RecentTexts(room)
