"""DFlash and DSpark: a block of tokens is the same, whatever was drafted before."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Draft, score_one
from edgecs.engines.llama.heads.dflash import DFlash
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import Loaded, load, load_drafter
from tests import drafter_files as files

TOKENS = np.random.default_rng(1).integers(0, 250, 600).astype(np.int32)
OPTIONS = LoadOptions(n_ctx=512, n_batch=64, threads=1, n_gpu_layers=0)
BLOCK = 8


@pytest.fixture(scope="module", params=["DFlash", "DSpark"])
def made(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[Loaded, DFlash]]:
    folder = tmp_path_factory.mktemp("dflash")
    target = files.target(folder / "target.gguf")
    markov = 8 * (request.param == "DSpark")
    head = files.dflash(folder / "head.gguf", block=BLOCK, markov=markov)
    with (
        load(target, OPTIONS) as loaded,
        load_drafter(head, loaded, OPTIONS) as drafter,
    ):
        assert isinstance(drafter.model, DFlash)
        assert drafter.model.kind == request.param
        yield loaded, drafter.model


rounds = st.lists(
    st.tuples(
        st.lists(st.integers(0, 250), max_size=9),  # what is drafted
        st.lists(st.integers(0, 250), max_size=3),  # and then instead
        st.lists(st.integers(0, 250), max_size=3),  # what the target verifies
        st.integers(0, 3),  # tokens of it that are accepted
        st.booleans(),  # whether the drafter is asked in this round
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=40)
@given(prompt=st.integers(2, 150), steps=rounds)
def test_drafts_in_any_order_are_those_of_a_new_drafter(
    made: tuple[Loaded, DFlash], prompt: int, steps: list
):
    target, head = made[0].target, made[1]
    target.reset()
    head.reset()
    context = Context(TOKENS[:prompt])
    score_one(target, context)
    for drafted, instead, verified, accepted, asked in steps:
        context.append([TOKENS[len(context)]])
        tails = [drafted[:i] for i in range(len(drafted) + 1)] + [instead]
        found = []
        for tail in tails if asked else ():
            here = context.with_tail(tail) if tail else context
            found.append(score_one(head, here).logits[0].copy())
        for tail, row in zip(tails, found, strict=False):
            assert row.any() == (len(tail) < BLOCK - (head.kind == "DFlash"))
        if asked:
            head.reset()  # so that the next round begins anew, too
            for tail, row in zip(tails, found, strict=True):
                here = context.with_tail(tail) if tail else context
                again = score_one(head, here).logits[0]
                # Cells have 16 bits, and calls of other widths another rounding.
                assert np.abs(row - again).max() <= 0.02 * max(again.std(), 1e-6), tail
        score_one(target, context, Draft.chain(verified, "test"))
        context.append(verified[:accepted])


def test_tokens_of_a_draft_do_not_matter(made: tuple[Loaded, DFlash]):
    """The places of a block are computed together, before its tokens are chosen."""
    target, head = made[0].target, made[1]
    target.reset()
    context = Context(TOKENS[:50])
    score_one(target, context)
    context.append([3])
    rows = [
        score_one(head, context.with_tail(tail)).logits[0].copy()
        for tail in ([1, 2], [5, 6], [1, 6])
    ]
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[2])
