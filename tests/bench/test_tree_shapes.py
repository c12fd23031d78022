"""Sequoia finds the best tree of a size, and greedy growth one that is as good."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING
from edgecs.planning.acceptance import Calibration
from edgecs.planning.trees import Trees
from edgecs_bench.simulation.tree_shapes import Shape, greedy, sequoia, value

few = st.integers(0, 6)
levels = st.integers(1, 4)
ranks = st.lists(st.floats(0.01, 0.6), min_size=1, max_size=3)
falling = ranks.map(lambda chances: sorted(chances, reverse=True))


def every_shape(size: int, depth: int, most: int) -> Iterator[Shape]:
    """All trees of a size whose nodes have children of the first ranks only."""

    def grown(shape: Shape, depths: tuple[int, ...]) -> Iterator[Shape]:
        if len(shape) == size:
            yield shape
            return
        for parent in range(-1, len(shape)):
            level = 1 if parent < 0 else depths[parent] + 1
            rank = sum(above == parent for above, _ in shape)
            if level <= depth and rank < most:
                yield from grown((*shape, (parent, rank)), (*depths, level))

    yield from grown((), ())


def is_tree(shape: Shape, depth: int, most: int) -> bool:
    """Whether parents come first, and every child has its elder siblings."""
    depths, found = list[int](), set[tuple[int, int]]()
    for node, (parent, rank) in enumerate(shape):
        depths.append(1 if parent < 0 else depths[parent] + 1)
        found.add((parent, rank))
        if not (-1 <= parent < node and depths[-1] <= depth and rank < most):
            return False
    elder = all((parent, rank - 1) in found for parent, rank in found if rank)
    return elder and len(found) == len(shape)


@given(ranks, few, levels)
@settings(max_examples=60, deadline=None)
def test_the_dynamic_program_finds_the_best_tree(chances, size: int, depth: int):
    expected, shape = sequoia(chances, size, depth)[size]
    assert is_tree(shape, depth, len(chances))
    assert value(shape, chances) == pytest.approx(expected)
    every = [value(one, chances) for one in every_shape(size, depth, len(chances))]
    if every:
        assert len(shape) == size
        assert expected == pytest.approx(max(every))
    else:
        assert len(shape) < size


@given(falling, st.integers(0, 20), levels)
@settings(deadline=None)
def test_greedy_growth_is_as_good_where_later_ranks_are_less_probable(
    chances, size: int, depth: int
):
    best, grown = sequoia(chances, size, depth)[size], greedy(chances, size, depth)
    assert is_tree(grown.shape, depth, len(chances))
    assert grown.expected == pytest.approx(best.expected)
    assert value(grown.shape, chances) == pytest.approx(best.expected)


def test_greedy_growth_is_worse_where_a_later_rank_is_more_probable():
    chances = [0.5, 0.1, 0.9]
    assert greedy(chances, 3, 2).expected < sequoia(chances, 3, 2)[3].expected


class Ranked:
    """Branches with the same candidates after every token, in ranks."""

    name = label = "ranked"

    def __init__(self, chances: list[float]) -> None:
        left, self.prior = 1.0, list[float]()
        for chance in chances:  # given that those before are wrong
            odds = chance / (left - chance)
            self.prior.append(math.log(odds))
            left -= chance
        self.buckets = len(chances)

    def sync(self, context: Context) -> None:
        pass

    def successors(self, end, depth):
        return [(rank, (rank,)) for rank in range(self.buckets)]


@given(
    st.lists(st.floats(0.02, 0.3), min_size=1, max_size=3).map(
        lambda chances: sorted(chances, reverse=True)
    ),
    st.integers(1, 12),
)
@settings(deadline=None)
def test_the_planner_chooses_as_good_nodes(chances: list[float], size: int):
    trees = Trees([Ranked(chances)], Calibration(), 99)
    tree = trees.grow(Context([0]), NOTHING, [], size, 0.0)
    best = sequoia(chances, len(tree.path), 8)[len(tree.path)]
    assert sum(tree.path) == pytest.approx(best.expected)
