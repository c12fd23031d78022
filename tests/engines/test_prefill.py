"""What was read before does not change an answer: not by a bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Draft, score_one
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import Loaded, load

CHUNK = 16
HEAD = [(7 * i) % 200 for i in range(40)]  # what prompts share with each other


@pytest.fixture(scope="module")
def chunked(tiny_gguf):
    """A target whose prompts are read in chunks of 16."""
    options = LoadOptions(
        n_ctx=512, n_batch=CHUNK, max_draft=7, threads=1, kernels="llama"
    )
    with load(tiny_gguf, options) as loaded:
        yield loaded


def answer(loaded: Loaded, prompt: list[int], n: int = 4) -> list[bytes]:
    """The rows of an answer, bit for bit; the turn ends as a session ends it."""
    target, context = loaded.target, Context(prompt)
    rows = [score_one(target, context).logits[0].copy()]
    for _ in range(n):
        context.append([int(rows[-1].argmax())])
        draft = Draft.chain([1, 2], "x")  # cut off again by the next call
        rows.append(score_one(target, context, draft).logits[0].copy())
    target.end_turn(context)
    return [row.tobytes() for row in rows]


prompts = st.tuples(
    st.integers(0, len(HEAD)),
    st.lists(st.integers(200, 255), min_size=1, max_size=40),
)


@given(st.lists(prompts, min_size=1, max_size=4), prompts)
@settings(max_examples=60)
def test_unrelated_prompts_change_no_bit(chunked: Loaded, before, last):
    shared, own = last
    prompt = [*HEAD[:shared], *own]
    chunked.target.reset()
    alone = answer(chunked, prompt)
    chunked.target.reset()
    for shared, own in before:
        answer(chunked, [*HEAD[:shared], *own])
    assert answer(chunked, prompt) == alone
    assert answer(chunked, prompt) == alone  # and again, from the row that was kept


def test_whole_chunks_are_read_once(chunked: Loaded):
    target = chunked.target
    target.reset()
    answer(chunked, [*HEAD, 1, 2, 3])
    assert score_one(target, Context([*HEAD, 9])).fed == len(HEAD) + 1 - 2 * CHUNK


def test_a_turn_reads_only_what_is_new(chunked: Loaded):
    target, context = chunked.target, Context(HEAD)
    target.reset()
    for _ in range(2):
        for _ in range(5):
            row = score_one(target, context).logits[0]
            context.append([int(row.argmax())])
        target.end_turn(context)
        context.append([3, 4, 5])
        assert score_one(target, context).fed == 4
    # Taken back and asked in another way, it goes on from the end of the turn before.
    earlier = Context([*context.tokens[:-3], 7, 8])
    assert score_one(target, earlier).fed == 3
    assert np.isfinite(score_one(target, earlier).logits).all()
