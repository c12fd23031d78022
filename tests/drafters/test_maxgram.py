"""Max-Gram against an exhaustive search, and its promises one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Draft, Rows, Verdict
from edgecs.drafters.copies import GRAM, LONGEST, Opinion
from edgecs.drafters.maxgram import CANDIDATES, MaxGram


def exhaustive(committed: list[int], tail: list[int], k: int) -> tuple[list[int], int]:
    """The definition: newest of the longest matches; (continuation, match length)."""
    text = committed + tail
    best, found = 0, None
    for end in range(len(committed) - 2, -1, -1):  # needs a committed successor
        length = 0
        while (
            length < min(LONGEST, end + 1) and text[end - length] == text[-1 - length]
        ):
            length += 1
        if length > best:
            best, found = length, end
    if found is None:
        return [], 0
    for i in range(k):
        text.append(text[found + 1 + i])
    return text[len(text) - k :], best


def rivals(committed: list[int], text: list[int]) -> int:
    """How many committed occurrences the last GRAM tokens have."""
    gram = text[-GRAM:]
    return sum(committed[i : i + GRAM] == gram for i in range(len(committed) - GRAM))


@given(
    committed=st.lists(st.integers(0, 3), max_size=120),
    tail=st.lists(st.integers(0, 3), max_size=4),
    k=st.integers(1, 12),
    pieces=st.integers(1, 7),
)
@settings(max_examples=400)
def test_is_exhaustive_search_while_candidates_suffice(
    committed: list[int], tail: list[int], k: int, pieces: int
):
    context, drafter = Context(), MaxGram()
    for start in range(0, len(committed), pieces):  # the index grows as it would
        context.append(committed[start : start + pieces])
        drafter.propose(context, 1)
    got = drafter.propose(context.with_tail(tail), k).tokens.tolist()
    expected, length = exhaustive(committed, tail, k)
    if length < GRAM or rivals(committed, committed + tail) <= CANDIDATES:
        assert got == expected
    else:
        assert len(got) == k


@given(st.lists(st.integers(0, 1), min_size=200, max_size=400))
@settings(max_examples=100)
def test_many_rivals_still_give_the_longest_of_the_newest(committed: list[int]):
    got = MaxGram().propose(Context(committed), 1).tokens.tolist()
    gram, ends = committed[-GRAM:], []
    for end in range(len(committed) - 2, GRAM - 2, -1):
        if committed[end - GRAM + 1 : end + 1] == gram:
            ends.append(end)
    best, found = 0, None
    for end in ends[:CANDIDATES]:
        length = 0
        while length < min(LONGEST, end + 1) and (
            committed[end - length] == committed[-1 - length]
        ):
            length += 1
        if length > best:
            best, found = length, end
    if found is not None:
        assert got == [committed[found + 1]]


def propose(tokens: list[int], k: int = 4, tail: tuple[int, ...] = (), **options):
    context = Context(tokens).with_tail(tail)
    return MaxGram(**options).propose(context, k).tokens.tolist()


def test_a_text_without_repetition_gives_nothing():
    assert propose([1, 2, 3, 4]) == []
    assert propose([7]) == []
    assert propose([]) == []


def test_newest_occurrence_wins():
    assert propose([1, 2, 3, 9, 1, 2, 4, 9, 1, 2], k=1) == [4]


def test_longest_occurrence_wins_over_newest():
    assert propose([5, 1, 2, 3, 9, 1, 2, 4, 9, 5, 1, 2], k=1) == [3]


def test_periodic_text_is_continued_through_the_copy():
    assert propose([1, 2, 3, 1, 2], k=8) == [3, 1, 2, 3, 1, 2, 3, 1]


def test_another_drafters_tokens_are_continued():
    assert propose([1, 2, 3, 4, 9], k=2, tail=(1, 2)) == [3, 4]


def test_speculative_tokens_are_not_indexed():
    context, drafter = Context([1, 2]), MaxGram()
    drafter.propose(context.with_tail([8, 9]), 4)
    context.append([3])
    assert drafter.propose(context.with_tail([8]), 4).tokens.tolist() == []


def test_a_new_context_starts_a_new_index():
    drafter = MaxGram()
    drafter.propose(Context([1, 2, 3, 1]), 4)
    assert drafter.propose(Context([1]), 4).tokens.tolist() == []


def test_short_matches_can_be_refused():
    text = [1, 2, 3, 9, 1, 2]
    assert propose(text, k=1, min_match=2) == [3]
    assert propose(text, k=1, min_match=3) == []
    long = [1, 2, 3, 4, 5, 9, 1, 2, 3, 4]
    assert propose(long, k=1, min_match=4) == [5]
    assert propose(long, k=1, min_match=5) == []


def observe(drafter: MaxGram, context: Context, drafted: list[int], chosen: list[int]):
    rows = Rows(np.eye(10, dtype=np.float32)[chosen], fed=1)
    verdict = Verdict((), chosen[0])
    drafter.observe(context, Draft.chain(drafted, "mag"), rows, verdict)


def test_bigram_fill_knows_what_the_target_said():
    drafter = MaxGram(bigram_fill=True)
    # After 3 the target said 4; after the rejected draft token 7 it would say 8.
    observe(drafter, Context([3]), [7], [4, 8])
    assert drafter.propose(Context([3]), 3).tokens.tolist() == [4]
    assert drafter.propose(Context([9, 7]), 3).tokens.tolist() == [8]
    # A fill is matched on: after 4 the text itself knows more.
    assert drafter.propose(Context([4, 5, 6, 3]), 3).tokens.tolist() == [4, 5, 6]


def test_bigram_fill_is_off_unless_asked_for():
    drafter = MaxGram()
    observe(drafter, Context([3]), [7], [4, 8])
    assert drafter.propose(Context([3]), 3).tokens.tolist() == []


@pytest.mark.parametrize("k", [1, 5])
def test_sources_name_the_drafter(k: int):
    draft = MaxGram(name="max").propose(Context([1, 1]), k)
    assert draft.sources == ("max",) * k
    assert draft.is_chain


def opinion(committed: list[int], gram: list[int], token: int) -> Opinion | None:
    """The definition: what followed every occurrence of a gram, the newest last."""
    n = len(gram)
    followers = [
        committed[i + n]
        for i in range(len(committed) - n)
        if committed[i : i + n] == gram
    ]
    if not followers:
        return None
    newest = followers[-1]
    run = next(
        (i for i, other in enumerate(reversed(followers)) if other != newest),
        len(followers),
    )
    return newest == token, run, len(followers)


@given(
    committed=st.lists(st.integers(0, 3), min_size=1, max_size=120),
    tail=st.lists(st.integers(0, 3), max_size=4),
    k=st.integers(1, 12),
    most=st.integers(0, 12),
    pieces=st.integers(1, 7),
)
@settings(max_examples=400)
def test_evidence_is_what_the_text_says(
    committed: list[int], tail: list[int], k: int, most: int, pieces: int
):
    context, drafter = Context(), MaxGram()
    for start in range(0, len(committed), pieces):
        context.append(committed[start : start + pieces])
        drafter.propose(context, 1)
    here = context.with_tail(tail)
    draft = drafter.propose(here, k)
    drafted, text = draft.tokens.tolist(), committed + tail
    found = drafter.copy(drafted[:most])
    opinions = list(found.opinions)
    assert len(opinions) == min(most, len(drafted))
    for i, said in enumerate(opinions):
        before = text + drafted[:i]
        assert said == tuple(
            opinion(committed, before[-n:], drafted[i]) if n <= len(before) else None
            for n in range(1, GRAM + 1)
        )
    length = exhaustive(committed, tail, k)[1]
    if length < GRAM or rivals(committed, text) <= CANDIDATES:
        assert found.length == length
    else:
        assert GRAM <= found.length <= length


def test_evidence_is_about_the_last_proposal():
    context, drafter = Context([1, 2, 3, 4, 9, 1, 2, 3]), MaxGram()
    assert drafter.copy(drafter.continuation(context, 2)).length == 3
    for other, k in ((context, 0), (context.with_tail([7]), 2)):
        length, opinions = drafter.copy(drafter.continuation(other, k))
        assert (length, list(opinions)) == (0, [])


def test_opinions_of_short_grams_may_contradict_a_long_match():
    # After 5 1 2 came 3 once; after 1 2 alone came 4 twice since then.
    context = Context([5, 1, 2, 3, 9, 1, 2, 4, 9, 1, 2, 4, 9, 5, 1, 2])
    drafter = MaxGram()
    assert drafter.continuation(context, 1) == [3]
    found = drafter.copy([3])
    assert found.length == 3
    assert list(found.opinions) == [((False, 2, 3), (False, 2, 3), (True, 1, 1))]
