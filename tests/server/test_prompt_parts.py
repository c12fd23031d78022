"""Parts of prompts take about as long as a round of the other answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgecs.server.batching.parts import PromptParts

SECONDS = st.floats(1e-4, 10)


@given(SECONDS, SECONDS, st.integers(1, 4096), st.integers(32, 4096))
def test_a_part_takes_as_long_as_a_round(
    round_: float, token: float, most: int, read: int
):
    parts = PromptParts(most)
    assert 1 <= parts.tokens() <= most
    for _ in range(40):
        parts.read(read, read * token)
        parts.decoded(round_)
    assert 1 <= parts.tokens() <= most
    if 32 < parts.tokens() < most:
        assert abs(parts.tokens() * token - round_) <= token * 0.51
    elif parts.tokens() == most > 32:
        assert most * token <= round_ + token
    else:
        assert parts.tokens() * token >= round_ - token or parts.tokens() == most


@given(SECONDS, st.integers(1, 31))
def test_a_short_call_says_nothing_about_long_ones(seconds: float, tokens: int):
    parts = PromptParts(512)
    parts.decoded(0.02)
    before = parts.tokens()
    parts.read(tokens, seconds)
    assert parts.tokens() == before


@given(SECONDS, SECONDS, st.integers(1, 8))
def test_the_part_of_several_prompts_is_longer(round_: float, token: float, n: int):
    parts = PromptParts(512)
    parts.read(100, 100 * token)
    parts.decoded(round_)
    assert parts.tokens(n) >= parts.tokens()
    if 32 < parts.tokens(n) < 512:
        assert abs(parts.tokens(n) * token - n * round_) <= token * 0.51


def test_one_slow_call_does_not_decide():
    parts = PromptParts(512)
    for _ in range(9):
        parts.read(100, 0.05)
        parts.decoded(0.02)
    assert parts.tokens() == 40
    parts.decoded(0.06)
    assert parts.tokens() == 60
