"""Branches below siblings from a neural drafter, and drafters that review trees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.core.draft import Draft, Request
from edgecs.planning.below_siblings import expected, lookahead, paths
from edgecs.planning.trees import Tree
from edgecs.sampling.chain import always, chooser
from edgecs.sampling.settings import Sampling
from edgecs_bench.simulation.replay_drafter import Watch
from tests.core.trees import drafts
from tests.planning.test_trees import branching
from tests.planning.timed_models import STEEP, Near, Timed, opened

WORDS = 3


def distinct(tree: Draft) -> bool:
    """Whether siblings differ, as in the trees that grow."""
    return len(tree.children()) == len(tree)


@given(
    drafts(WORDS).filter(lambda tree: len(tree) > 0).filter(distinct),
    st.lists(st.integers(0, WORDS - 1), max_size=4),
    st.data(),
)
def test_a_call_computes_the_wanted_nodes_and_those_above_them(
    tree: Draft, chain: list[int], data: st.DataObject
):
    walked = paths(tree)
    nodes = st.lists(st.integers(0, len(tree) - 1), min_size=1, unique=True)
    off_chain = [n for n, path in enumerate(walked) if [*path] != chain[: len(path)]]
    wanted = [n for n in data.draw(nodes) if n in off_chain]
    if not wanted:
        return
    call = lookahead(tree, walked, chain, wanted)
    call.tree.check()
    inside = [(*call.before, *path) for path in paths(call.tree)]
    assert {inside[node]: path for node, path in call.wanted.items()} == {
        walked[node]: walked[node] for node in wanted
    }
    assert set(inside) <= set(walked)
    for path in inside:  # none is there that no wanted node follows
        assert any(walked[node][: len(path)] == path for node in wanted)
    assert [*call.before] == chain[: len(call.before)]
    assert len(set(inside)) == len(inside)


@given(st.lists(st.floats(0.05, 0.9), min_size=1, max_size=5), st.floats(0.05, 0.95))
def test_an_expected_token_takes_the_place_of_the_best_child(
    shares: list[float], right: float
):
    # A chain: each node has one child, except the last one.
    path = np.cumprod(shares).tolist()
    chain = Draft.chain(list(range(len(path))), "a")
    at = len(path) // 2
    found = expected(Tree(chain, path), [at], right)
    assert found == sorted(found, reverse=True)
    last = at == len(path) - 1
    assert len(found) == len(path) + last
    assert sum(found) == pytest.approx(
        sum(path)
        - (0 if last else path[at + 1])
        + max(path[at] * right, 0 if last else path[at + 1])
    )


def played(leaves: int, *, models: int = 1, temperature: float = 0.8):
    """Answers whose law depends on all tokens, so only drafters know anything.

    leaves: of the drafters.
    """
    target = Timed(Watch(), 50, 3)
    drafters = [Near(target, 0.6, i, single=0.5) for i in range(models)]
    for drafter in drafters:
        drafter.max_leaves = leaves
    planner = branching(target, drafters, leaves=12)
    rule = always(chooser(Sampling(temperature, seed=4), 50))
    drafted: list[Draft] = []
    with opened(target, planner, rule=rule) as session:
        session.on_round = lambda context, done: drafted.append(done.draft)
        said = [t.id for t in session.generate([1, 2], max_tokens=120)]
        assert not session.stats.faults
    assert said == target.alone([1, 2], 120, rule(2).target)
    return target, planner, drafted


def below_siblings(draft: Draft) -> int:
    """Tokens of a neural drafter below a sibling, which states no probability."""
    parents, stated = draft.parents.tolist(), draft.confidences.tolist()
    return sum(
        source == "d0" and parent >= 0 and stated[parent] == 1
        for parent, source in zip(parents, draft.sources, strict=True)
    )


def test_a_drafter_that_takes_trees_goes_on_below_siblings():
    chains, _, without = played(1)
    trees, planner, drafted = played(8)
    assert not any(map(below_siblings, without))
    assert sum(map(below_siblings, drafted)) > 10
    assert trees.watch.now() < chains.watch.now()
    # The drafter's calls for several siblings were timed as others are.
    assert planner.neural[0].costs.rounds[3:].sum() > 0


def test_calls_for_siblings_are_not_made_where_each_token_costs_a_call():
    target = Timed(Watch(), 50, 3)
    drafter = Near(target, 0.6, single=4, relative=STEEP)
    drafter.max_leaves = 8
    widths: list[int] = []
    rows = drafter.rows

    def seen(request: Request):
        widths.append(len(request.draft))
        return rows(request)

    drafter.rows = seen  # type: ignore[method-assign]
    rule = always(chooser(Sampling(0.8, seed=4), 50))
    with opened(target, branching(target, [drafter], leaves=12), rule=rule) as session:
        list(session.generate([1, 2], max_tokens=60))
    assert widths
    assert max(widths) == 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_drafter_reviews_trees(temperature: float):
    """The larger of two drafters gets the siblings of the smaller one."""
    target = Timed(Watch(), 50, 3)
    large = Near(target, 0.3, 0, single=5)
    small = Near(target, 1.0, 1, single=0.2)
    large.max_leaves, small.max_leaves = 8, 1
    reviewed: list[Draft] = []
    rows = large.rows

    def seen(request: Request):
        reviewed.append(request.draft)
        return rows(request)

    large.rows = seen  # type: ignore[method-assign]
    rule = always(chooser(Sampling(temperature, seed=4), 50))
    planner = branching(target, [large, small], leaves=12)
    with opened(target, planner, rule=rule) as session:
        said = [t.id for t in session.generate([1, 2], max_tokens=100)]
        assert not session.stats.faults
    assert said == target.alone([1, 2], 100, rule(2).target)
    assert any(not draft.is_chain and "d1" in draft.sources for draft in reviewed)


@pytest.mark.faults
def test_a_drafter_that_fails_below_siblings_is_parked():
    target = Timed(Watch(), 50, 3)
    drafter = Near(target, 0.6, single=0.5)
    drafter.max_leaves = 8
    rows = drafter.rows

    def broken(request: Request):
        if not request.draft.is_chain:
            raise RuntimeError("no room for the cells of a tree")
        return rows(request)

    drafter.rows = broken  # type: ignore[method-assign]
    rule = always(chooser(Sampling(0.8, seed=4), 50))
    with opened(target, branching(target, [drafter], leaves=12), rule=rule) as session:
        said = [t.id for t in session.generate([1, 2], max_tokens=60)]
        assert list(session.stats.faults) == ["d0"]
    assert said == target.alone([1, 2], 60, rule(2).target)
