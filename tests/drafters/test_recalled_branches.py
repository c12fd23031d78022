"""The proposal of a store as a branch beside a chain."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Draft
from edgecs.drafters.copies import GRAM
from edgecs.drafters.recalled import Recalled
from edgecs.drafters.recalled_branches import RecalledBranches
from edgecs.drafters.recent_texts import RecentTexts
from edgecs.planning.acceptance import Calibration
from edgecs.planning.trees import Trees

TEXT = list(range(20))


def opened() -> tuple[Recalled, RecalledBranches]:
    texts = RecentTexts(64)
    texts.add(TEXT)
    source = Recalled(texts, "recent")
    return source, RecalledBranches(source)


@given(st.integers(GRAM, 12), st.integers(1, 8), st.integers(0, 9))
def test_it_goes_along_its_own_tokens_only(start: int, k: int, depth: int):
    source, branches = opened()
    context = Context(TEXT[:start])
    proposed = source.continuation(context, k)
    branches.sync(context)
    here = TEXT[: start + depth]
    found = branches.successors(here[-GRAM:], depth)
    assert [token for token, _ in found] == proposed[depth : depth + 1]
    for _, buckets in found:
        assert 0 <= min(buckets) <= max(buckets) < branches.buckets
    assert len(branches.prior) == branches.buckets
    if depth:
        assert not branches.successors([*here[-GRAM:-1], 99], depth)


def test_a_proposal_for_another_context_is_not_used():
    source, branches = opened()
    context = Context(TEXT[:6])
    source.continuation(context.with_tail([6]), 4)  # the tail of a draft
    branches.sync(context)
    assert not branches.successors(TEXT[3:6], 0)
    source.continuation(context, 4)
    branches.sync(Context(TEXT[:6]))
    assert not branches.successors(TEXT[3:6], 0)


def test_a_tree_has_the_chain_and_what_the_store_says():
    source, branches = opened()
    trees, context = Trees([branches], Calibration(), 4), Context(TEXT[:6])
    source.continuation(context, 4)
    grown = trees.grow(context, Draft.chain([50, 51], "mag"), [0.4, 0.2], 8, 0.0)
    draft = grown.draft
    assert len(draft.leaves) == 2
    assert draft.path_along([50, 51]) != draft.path_along(TEXT[6:8]) != []
    assert set(draft.sources) == {"mag", "recent"}
