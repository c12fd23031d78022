"""PrefixCache: a model that sees only its cells answers like one that sees all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Draft, score_one
from edgecs.engines.kv_prefix import PrefixCache
from edgecs.testing.fakes import CachingModel, TableModel

tokens = st.lists(st.integers(0, 3), max_size=6)
# One step: cut the conversation (in a new context) or keep it, append, guess, fail.
steps = st.lists(
    st.tuples(st.integers(0, 12), tokens, tokens, st.booleans()),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("partial", [True, False])
@given(steps=steps)
@settings(max_examples=150)
def test_cells_are_never_stale(partial: bool, steps):
    cached, honest = CachingModel(4, partial=partial), TableModel(4)
    context = Context([0])
    for cut, appended, drafted, fails in steps:
        if cut < len(context):
            context = Context([*context.tokens[: max(1, cut)]])
        context.append(appended)
        draft = Draft.chain(drafted, "x")
        if fails:
            cached.fail_next = True
            with pytest.raises(RuntimeError):
                score_one(cached, context, draft)
        # As a draft, then as a tail, which is how a reviewer inside a cascade sees it;
        # twice, so that the second call finds the tail in its cells.
        tail = context.with_tail(drafted)
        for view, rest in ((context, draft), (tail, NOTHING), (tail, NOTHING)):
            got = score_one(cached, view, rest).logits
            np.testing.assert_array_equal(got, score_one(honest, view, rest).logits)
        if cut % 3 == 0:
            cached.end_turn(context)
            assert len(cached.cells) <= len(context) - 1 or not partial


def test_the_fake_would_notice_stale_cells():
    model = CachingModel(4)
    score_one(model, Context([1, 2, 3]), Draft.chain([], ""))
    model.cells[0] = 2  # behind the back of the bookkeeping
    wrong = score_one(model, Context([1, 2, 3, 0]), Draft.chain([], "")).logits
    right = score_one(TableModel(4), Context([1, 2, 3, 0]), Draft.chain([], "")).logits
    assert not np.array_equal(wrong, right)


def test_only_new_tokens_are_fed():
    model, context = CachingModel(8), Context(range(7))
    assert score_one(model, context, Draft.chain([1, 2], "x")).fed == 9
    context.append([1, 5])  # one accepted, one corrected
    assert score_one(model, context, Draft.chain([], "")).fed == 1
    assert score_one(model, Context(range(7)), Draft.chain([], "")).fed == 1


def test_known_agreement_is_not_compared_again():
    cache, context = PrefixCache(lambda n: n), Context(range(1000))
    cache.extend(context.tokens.tolist())
    cache.keep(context, 1000)
    # Were the cells compared from the start, the change would be seen.
    cache._ids[5] = 99
    context.append([1])
    assert cache.keep(context, 1001) == 1000
    assert cache.keep(Context(range(1000)), 1000) == 5
