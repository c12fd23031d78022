"""Repetition loops are found where their definition says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgecs_bench.suite.repetition import LEAST, LONGEST, TIMES, looping

TEXTS = st.lists(st.integers(0, 2), max_size=120)


def by_hand(tokens: list[int]) -> list[bool]:
    """Loops by their definition: every stretch is looked at for every period."""
    inside, size = [False] * len(tokens), len(tokens)
    for period in range(1, LONGEST + 1):
        for start in range(size):
            end = start + period
            while end < size and tokens[end] == tokens[end - period]:
                end += 1
            if end - start >= max(LEAST, TIMES * period) and end <= size:
                inside[start:end] = [True] * (end - start)
    return inside


@given(TEXTS)
def test_loops_are_what_the_definition_says(tokens: list[int]):
    assert looping(tokens).tolist() == by_hand(tokens)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=LONGEST),
    st.integers(TIMES, 6),
    TEXTS,
    TEXTS,
)
def test_a_loop_is_found_anywhere(unit: list[int], times: int, before, after):
    loop = unit * max(times, -(-LEAST // len(unit)))
    inside = looping([*before, *loop, *after])
    assert inside[len(before) : len(before) + len(loop)].all()


@given(TEXTS)
def test_loops_do_not_depend_on_names_or_direction(tokens: list[int]):
    inside = looping(tokens).tolist()
    assert looping([7 - token for token in tokens]).tolist() == inside
    assert looping(tokens[::-1]).tolist()[::-1] == inside


def test_what_is_too_short_or_too_long_is_no_loop():
    assert not looping([]).any()
    assert not looping([1] * (LEAST - 1)).any()
    assert looping([1] * LEAST).all()
    assert not looping([*range(12)] * 2).any()  # 24 tokens, but said only twice
    assert looping([*range(LONGEST)] * 3).all()
    assert not looping([*range(LONGEST + 1)] * 5).any()
    assert not looping(range(500)).any()
