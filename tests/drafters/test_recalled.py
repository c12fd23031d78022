"""A corpus as a source, and the texts that a conversation leaves to it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Rows, Verdict
from edgecs.drafters.copies import LONGEST
from edgecs.drafters.corpus import Match
from edgecs.drafters.recalled import Recalled
from edgecs.drafters.recent_texts import RecentTexts
from edgecs.drafters.remembered import Remembered

END = list(range(40))
odd = st.integers(-(1 << 40), 1 << 40)


class Fixed:
    """A corpus with one answer."""

    def __init__(self, match: Match | None) -> None:
        self.said, self.ends = match, list[list[int]]()

    def match(self, end: Sequence[int], k: int) -> Match | None:
        self.ends.append([*end])
        return self.said


def recalled(tokens: list[int], length: int = 5, times: int = 1, agreeing: int = 1):
    return Recalled(Fixed(Match(length, times, agreeing, tokens)), "user")


@given(
    st.builds(Match, odd, odd, odd, st.lists(odd, min_size=1, max_size=90)),
    st.lists(odd, max_size=9),
    st.integers(1, 70),
)
def test_any_match_has_buckets_in_range(match: Match, beside: list[int], k: int):
    source = Recalled(Fixed(match), "user", vocab_size=99)
    tokens = source.continuation(Context(END), k)
    assert len(tokens) <= k
    assert all(0 <= token < 99 for token in tokens)
    source.compare(beside)
    found = [*source.evidence(tokens)]
    assert len(found) == len(tokens)
    for buckets in found:
        assert len(set(buckets)) == 4
        assert 0 <= min(buckets) <= max(buckets) < source.buckets
    assert len(source.prior) == source.buckets


def test_a_corpus_is_asked_with_as_many_tokens_as_count():
    corpus = Fixed(None)
    source = Recalled(corpus, "user")
    assert source.propose(Context(END), 3) is NOTHING
    assert corpus.ends == [END[-LONGEST:]]
    assert not source.continuation(Context([1, 2]), 3)  # too short to be asked
    source.allow(False)
    assert not source.continuation(Context(END), 3)
    assert len(corpus.ends) == 1


def test_a_token_that_others_propose_too_is_another_bucket():
    source = recalled([1, 2, 3])
    tokens = source.continuation(Context(END), 3)
    said = []
    for beside in ([], [1, 2], [1, 9], [9, 2]):
        source.compare(beside)
        said.append([buckets[-1] for buckets in source.evidence(tokens)])
    none, same, differs, other = said
    assert len(set(none)) == 1
    assert same[0] == same[1] == differs[0] != none[0] == same[2]
    assert differs[1] == other[0] not in (none[0], same[0])
    assert other[1:] == none[1:]  # nothing is known after the first difference


def test_more_and_longer_matches_are_other_buckets():
    def first(*args: int) -> tuple[int, ...]:
        source = recalled([1], *args)
        return tuple(*source.evidence(source.continuation(Context(END), 1)))

    assert first(5) != first(12)
    assert first(5, 2, 2) != first(5, 2, 1) != first(5, 1, 1)


def moves(source: Remembered, context: Context) -> None:
    """A round after which the source knows the context."""
    source.observe(context, NOTHING, Rows(None, 1), Verdict((), 0))  # type: ignore[arg-type]


def test_what_leaves_the_conversation_is_added():
    texts = RecentTexts(1 << 10)
    source, chat = Remembered(texts), Context([1, 2, 3, 4])
    moves(source, chat)
    chat.append([5, 6, 7])
    moves(source, chat)
    assert not source.continuation(chat, 2)
    assert texts.match([3, 4, 5], 2) is None  # Max-Gram has the conversation
    again = Context([1, 2, 3, 9])  # another question
    assert source.continuation(again.with_tail([4, 5]), 2) == []
    again.append([3, 4, 5])
    assert source.continuation(again, 2) == [6, 7]
    assert texts.match([1, 2, 3], 2) == (3, 1, 1, [4, 5])


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=6))
def test_every_text_is_known_once_it_is_over(prompts: list[list[int]]):
    texts, context = RecentTexts(1 << 10), Context()
    source = Remembered(texts)
    for prompt in prompts:
        context = Context(prompt)
        moves(source, context)
        context.append([7])
    moves(source, Context([8]))
    for prompt in prompts:
        said = [*prompt, 7]
        for i in range(3, len(said)):
            found = texts.match(said[:i], 1)
            assert found is not None
            assert found.length == i


@pytest.mark.parametrize("when", [0, 1])
def test_a_conversation_that_is_not_allowed_is_not_added(when: int):
    texts = RecentTexts(1 << 10)
    source, chat = Remembered(texts), Context([1, 2, 3, 4, 5])
    if when:  # its second turn
        moves(source, chat)
    source.allow(False)
    moves(source, chat)
    source.allow(True)
    other = Context([6, 7, 8, 9])
    moves(source, other)
    moves(source, Context([0]))
    assert texts.match([1, 2, 3], 1) is None
    assert texts.match([6, 7, 8], 1) is not None
