"""Trees: the best nodes, and the answers of the target alone.

The models are those of the planner's tests, with virtual time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Draft
from edgecs.decoding.exactness import Classes, Finding, Limits
from edgecs.drafters.bigrams import Bigrams
from edgecs.drafters.maxgram import MaxGram
from edgecs.drafters.registry import branches_of, usual_sources
from edgecs.planning.acceptance import Calibration
from edgecs.planning.row_siblings import MOST, RowSiblings
from edgecs.planning.trees import Trees
from edgecs.sampling.chain import always, chooser
from edgecs.sampling.settings import Sampling
from edgecs_bench.hardware.curves import curve
from edgecs_bench.simulation.replay_drafter import Watch
from tests.planning.timed_models import FLAT, STEEP, Near, Timed, opened, planned

WORDS = 5


class Listed:
    """Branches that were drawn: candidates by the last token, a bucket for each."""

    name, label = "listed", "list"
    buckets = 4

    def __init__(self, listed: dict[int, list[int]], odds: Sequence[float]) -> None:
        self._listed = listed
        self.prior = [float(np.log(p / (1 - p))) for p in odds]

    def sync(self, context: Context) -> None:
        pass

    def successors(self, end, depth):
        if depth > 2:
            return []
        return [(token, (i,)) for i, token in enumerate(self._listed.get(end[-1], ()))]


listed = st.dictionaries(
    st.integers(0, WORDS),
    st.lists(st.integers(0, WORDS), max_size=4, unique=True),
    max_size=WORDS + 1,
)
chances = st.lists(
    st.floats(0.05, 0.9), min_size=Listed.buckets, max_size=Listed.buckets
).map(lambda odds: sorted(odds, reverse=True))


def every_node(
    branches: Listed, odds: Sequence[float], chain: list[int], path: list[float]
) -> list[float]:
    """The path probabilities of all nodes, found by walking all of them."""
    found: list[float] = []

    def walk(walked: list[int], chance: float, along: bool) -> None:
        rest, first = chance, None
        if along and len(walked) < len(chain):
            first, sure = chain[len(walked)], path[len(walked)]
            found.append(sure)
            walk([*walked, first], sure, True)
            rest = chance - sure
        end = walked or [0]
        for token, (bucket,) in branches.successors(end, len(walked)):
            if token == first:
                continue
            share = rest * odds[bucket]
            rest -= share
            if share > 0.01:
                found.append(share)
                walk([*walked, token], share, False)

    walk([], 1.0, True)
    return sorted(found, reverse=True)


@given(listed, chances, st.lists(st.integers(0, WORDS), max_size=4), st.integers(1, 9))
@settings(max_examples=200)
def test_the_nodes_are_the_most_probable_ones(
    candidates: dict[int, list[int]], odds: list[float], chain: list[int], most: int
):
    branches = Listed(candidates, odds)
    trees = Trees([branches], Calibration(), 99)
    path = [0.7 ** (i + 1) for i in range(len(chain))]
    draft = Draft.chain(chain, "mag") if chain else NOTHING
    tree = trees.grow(Context([0]), draft, path, most, 0.0)
    tree.draft.check()
    assert len(tree.path) == len(tree.draft) <= most
    assert tree.path == sorted(tree.path, reverse=True)
    for node, parent in enumerate(tree.draft.parents.tolist()):
        assert parent < 0 or tree.path[node] <= tree.path[parent]
    assert len(tree.draft.children()) == len(tree.draft)  # siblings differ
    # A source is left after two unlikely candidates, so only likely nodes are compared.
    best = [p for p in every_node(branches, odds, chain, path) if p > 0.1][:most]
    assert tree.path[: len(best)] == pytest.approx(best)


@given(listed, chances, st.integers(1, 4), st.integers(1, 12))
def test_a_tree_has_no_more_leaves_than_allowed(
    candidates: dict[int, list[int]], odds: list[float], leaves: int, most: int
):
    trees = Trees([Listed(candidates, odds)], Calibration(), leaves)
    tree = trees.grow(Context([0]), NOTHING, [], most, 0.0)
    assert len(tree.draft.leaves) <= leaves
    assert tree.draft.is_chain or leaves > 1
    assert trees.may_grow(3) == (leaves > 1)


def test_nothing_follows_an_end_token():
    branches = Listed({0: [1, 2], 1: [3], 2: [3]}, [0.5, 0.5, 0.5, 0.5])
    trees = Trees([branches], Calibration(), 9, ends={1})
    tree = trees.grow(Context([0]), NOTHING, [], 9, 0.0)
    ended = tree.draft.tokens.tolist().index(1)
    assert ended not in tree.draft.parents
    assert 3 in tree.draft.tokens


def test_siblings_learn_from_the_text_that_follows():
    branches = Listed({0: [1, 2, 3], 2: [4, 5]}, [0.3, 0.3, 0.3, 0.3])
    calibration = Calibration()
    trees, acceptance = Trees([branches], calibration, 9), calibration.source(branches)
    before = acceptance.kept
    context = Context([0])
    trees.settle(context)
    trees.grow(context, NOTHING, [], 9, 0.0)
    context.append([2])
    trees.settle(context)
    change = acceptance.kept - before
    assert change[0] < 0 < change[1]  # 1 was wrong, and then 2 was right
    assert change[2] == 0  # nothing was asked of 3
    context.append([4])
    trees.settle(context)
    assert (acceptance.kept - before)[0] > change[0]  # the first after 2 was right
    after = acceptance.kept
    context.append([4])
    trees.settle(context)
    assert acceptance.kept.tolist() == after.tolist()  # the tree has ended


def test_of_several_trees_for_a_context_the_last_one_is_learned_from():
    learned = []
    for times in (1, 3):
        branches = Listed({0: [1, 2]}, [0.3, 0.3, 0.3, 0.3])
        calibration, context = Calibration(), Context([0])
        trees = Trees([branches], calibration, 9)
        trees.settle(context)
        for _ in range(times):
            trees.grow(context, NOTHING, [], 9, 0.0)
        context.append([2])
        trees.settle(context)
        learned.append(calibration.source(branches).kept.tolist())
    assert learned[0] == learned[1]


def test_what_a_drafter_reviews_teaches_nothing():
    branches = Listed({0: [1, 2]}, [0.3, 0.3, 0.3, 0.3])
    calibration, context = Calibration(), Context([0])
    trees = Trees([branches], calibration, 9).reviewed(2)
    trees.settle(context)
    assert len(trees.grow(context, NOTHING, [], 9, 0.0).draft.leaves) == 2
    before = calibration.source(branches).kept.tolist()
    context.append([2])
    trees.settle(context)
    assert calibration.source(branches).kept.tolist() == before


@given(
    st.lists(st.tuples(st.integers(0, 9), st.floats(0, 0.3)), max_size=6),
    st.floats(0, 1),
    st.integers(0, 40),
)
def test_the_siblings_of_a_row_have_buckets_in_range(ranked, first: float, depth: int):
    siblings = RowSiblings("d")
    found = siblings.described(ranked, first, depth)
    assert [token for token, _ in found] == [token for token, _ in ranked[:MOST]]
    for _, buckets in found:
        assert 0 <= min(buckets) <= max(buckets) < siblings.buckets
    assert len(siblings.prior) == siblings.buckets


def branching(target: Timed, models: Sequence[Timed] = (), **options: Any):
    """A planner that may draft trees, with all usual sources."""
    sources = usual_sources(trees=True)
    leaves = options.pop("leaves", 9)
    allowed = options.pop("allowed", lambda depth: True)
    ends = options.get("ends", ())

    def trees(calibration: Calibration) -> Trees:
        branches = branches_of(sources)
        return Trees(branches, calibration, leaves, allowed=allowed, ends=ends)

    target.max_leaves = leaves
    return planned(target, models, sources=sources, trees=trees, **options)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@given(data=st.data())
@settings(max_examples=60)
def test_answers_are_those_of_the_target_alone(data: st.DataObject, temperature: float):
    draw = data.draw
    vocab, memory = draw(st.integers(3, 6)), draw(st.sampled_from([1, 2, 3, 4096]))
    n_ctx = draw(st.sampled_from([40, 4096]))
    target = Timed(Watch(), vocab, draw(st.integers(0, 9)), memory=memory, n_ctx=n_ctx)
    relative = draw(st.sampled_from([FLAT, STEEP, {1: 1, 2: 2.2, 4: 1.5, 8: 1.6}]))
    target.times = curve("", 10.0, relative, 0.0).times / 1e3
    models = [
        Near(target, noise, i, single=0.5, n_ctx=draw(st.sampled_from([24, 4096])))
        for i, noise in enumerate(
            draw(st.lists(st.sampled_from([0.0, 0.3, 2.0]), max_size=2))
        )
    ]
    for model in models:
        model.max_leaves = draw(st.sampled_from([1, 2, 8]))
    ends = draw(st.sampled_from([(), (0,)]))
    leaves = draw(st.sampled_from([2, 5, 31]))
    planner = branching(target, models, ends=ends, leaves=leaves)
    choose = chooser(Sampling(temperature, seed=draw(st.integers(0, 99))), vocab)
    with opened(target, planner, ends=ends, rule=always(choose)) as session:
        for _ in range(draw(st.integers(1, 3))):  # turns
            kept = session.context.tokens.tolist()
            if draw(st.booleans()):  # a regenerated answer, or another conversation
                kept = kept[: draw(st.integers(0, len(kept)))]
            more = draw(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=4))
            prompt = [*kept, *more]
            if len(prompt) >= n_ctx:
                break
            size = min(30, n_ctx + 1 - len(prompt))
            expected = target.alone(prompt, size, choose)
            stop = next((i for i, t in enumerate(expected) if t in ends), size)
            expected = expected[: stop + 1]
            cut = draw(st.one_of(st.none(), st.integers(1, 20)))
            said = []
            for token in session.generate(prompt, max_tokens=30):
                said.append(token.id)
                if len(said) == cut:
                    target.cancel.set()
            cancelled = target.cancel.is_set()
            target.cancel.clear()
            assert said == expected[: len(said)] if cancelled else said == expected
        assert not session.stats.faults


@pytest.mark.parametrize("noise", [None, 0.5])
def test_trees_are_drafted_where_calls_are_flat(noise: float | None):
    target = Timed(Watch(), 8, 3, memory=1)
    models = [] if noise is None else [Near(target, noise, single=0.5)]
    rule = always(chooser(Sampling(2.0, seed=4), 8))  # greedy texts would be periodic
    branched, beside = 0, 0
    with opened(target, branching(target, models), rule=rule) as session:

        def looked_at(context: Context, done) -> None:
            nonlocal branched, beside
            branched += not done.draft.is_chain
            along = done.draft.first_path.tokens.tolist()
            accepted = done.draft.tokens[list(done.verdict.path)].tolist()
            beside += accepted != along[: len(accepted)]

        session.on_round = looked_at
        for seed in range(3):
            list(session.generate([seed, 2], max_tokens=100))
    assert branched > 5
    assert beside > 0  # siblings were accepted


def test_chains_are_drafted_where_rows_must_be_those_of_plain_decoding():
    target = Timed(Watch(), 8, 3, memory=1)
    same = Finding(frozenset(range(2, 33)), frozenset())
    limits = Limits(Classes({0: same, 256: same}), "strict")
    planner = branching(target, allowed=lambda depth: limits.tier(depth) != "strict")
    drafts: list[Draft] = []
    with opened(target, planner, limits=limits) as session:
        session.on_round = lambda context, done: drafts.append(done.draft)
        said = [token.id for token in session.generate([1, 2], max_tokens=60)]
    assert said == target.greedy([1, 2], 60)
    assert all(draft.is_chain for draft in drafts)
    assert any(len(draft) for draft in drafts)


def test_no_tree_is_drafted_where_each_token_costs_a_call():
    target = Timed(Watch(), 8, 3, memory=1, relative=STEEP)
    rule = always(chooser(Sampling(0.8, seed=4), 8))
    with opened(target, branching(target), rule=rule) as session:
        list(session.generate([1, 2], max_tokens=200))
        assert max(session.stats.rounds_by_width) <= 2


@pytest.mark.faults
def test_branches_that_fail_are_parked():
    class Broken(Bigrams):
        label = "bigram"

        def sync(self, context: Context) -> None:
            raise RuntimeError("a defect")

        def successors(self, end, depth):
            return []

    target = Timed(Watch(), 8, 3, memory=1)
    broken = Broken()
    planner = planned(
        target,
        sources=[MaxGram(), broken],
        trees=lambda calibration: Trees([broken], calibration, 4),
    )
    target.max_leaves = 4
    with opened(target, planner) as session:
        said = [token.id for token in session.generate([1, 2], max_tokens=40)]
        assert said == target.greedy([1, 2], 40)
        assert list(session.stats.faults) == ["bigram"]
        assert session.stats.accepted > 0  # by Max-Gram


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_siblings_of_a_drafter_shorten_an_answer(temperature: float):
    """The law depends on all tokens, so only the drafter knows anything."""
    seconds = {}
    rule = always(chooser(Sampling(temperature, seed=4), 200))
    for leaves in (1, 8):
        target = Timed(Watch(), 200, 3)
        planner = branching(target, [Near(target, 0.5, single=0.5)], leaves=leaves)
        with opened(target, planner, rule=rule) as session:
            list(session.generate([1, 2], max_tokens=120))
        seconds[leaves] = target.watch.now()
    assert seconds[8] < 0.97 * seconds[1]


def test_trees_that_are_not_better_are_grown_in_few_rounds():
    trees = Trees([Listed({}, [0.5] * 4)], Calibration(), 4)

    def grown(rounds: int, *, better: bool) -> int:
        count = 0
        for _ in range(rounds):
            if trees.may_grow(9):
                count += 1
                trees.compared(better=better)
        return count

    assert grown(50, better=True) == 50
    assert grown(200, better=False) < 30
    assert grown(100, better=True) > 80  # after one that is better, all are grown
