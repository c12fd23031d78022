"""Which nodes a tree has: Sequoia's dynamic program and DySpec's greedy growth.

Both maximise the expected number of accepted nodes, the sum of their path
probabilities, for a number of nodes.

Sequoia (arXiv 2402.12374) has one static tree. Its probabilities depend on the rank of
a token among its siblings only: `chances[r]` is the probability that the token of rank
r is right, given that their parent is. A node has a child of rank r only with those of
the ranks before.

DySpec (arXiv 2410.11744) grows a tree in every round from a heap of candidates, by path
probability. The planner does the same (`edgecs.planning.trees`). With probabilities
that fall with the rank no node is more probable than its parent or than the sibling
before it, and the greedy tree is as good as that of the dynamic program.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from heapq import heappop, heappush
from typing import NamedTuple

Shape = tuple[tuple[int, int], ...]
"""The nodes of a tree, parents first: the parent's index (-1: root) and the rank."""


class Best(NamedTuple):
    """A tree, and the expected number of its nodes that are accepted."""

    expected: float
    shape: Shape


def value(shape: Shape, chances: Sequence[float]) -> float:
    """The sum of the path probabilities of a tree's nodes.

    >>> value(((-1, 0), (0, 0), (-1, 1)), [0.5, 0.2])
    0.95
    """
    path: list[float] = []
    for parent, rank in shape:
        above = 1.0 if parent < 0 else path[parent]
        path.append(above * chances[rank])
    return sum(path)


def sequoia(chances: Sequence[float], most: int, depth: int) -> list[Best]:
    """The best trees of 0 to `most` nodes and at most `depth` levels, [most + 1].

    >>> sequoia([0.5, 0.4], 2, depth=3)[2].shape
    ((-1, 0), (-1, 1))
    """

    @cache
    def families(nodes: int, levels: int, children: int) -> tuple[float, int]:
        """The best `children` subtrees of a node, and the nodes of the last one."""
        if not children:
            return (0.0, 0) if not nodes else (float("-inf"), 0)
        found = (float("-inf"), 0)
        for last in range(1, nodes - children + 2):
            before, _ = families(nodes - last, levels, children - 1)
            below, _ = subtree(last - 1, levels - 1)
            worth = before + chances[children - 1] * (1 + below)
            found = max(found, (worth, last))
        return found

    @cache
    def subtree(nodes: int, levels: int) -> tuple[float, int]:
        """The best tree below a node, and the number of its first level's nodes."""
        if not nodes:
            return 0.0, 0
        if not levels:
            return float("-inf"), 0
        widest = min(len(chances), nodes)
        return max((families(nodes, levels, n)[0], n) for n in range(1, widest + 1))

    def built(
        nodes: int, levels: int, parent: int, shape: list[tuple[int, int]]
    ) -> None:
        _, children = subtree(nodes, levels)
        sizes = list[int]()
        for count in range(children, 0, -1):
            _, last = families(nodes, levels, count)
            sizes.insert(0, last)
            nodes -= last
        for rank, size in enumerate(sizes):
            shape.append((parent, rank))
            built(size - 1, levels - 1, len(shape) - 1, shape)

    every = list[Best]()
    for nodes in range(most + 1):
        expected, _ = subtree(nodes, depth)
        shape = list[tuple[int, int]]()
        if expected > float("-inf"):
            built(nodes, depth, -1, shape)
            every.append(Best(expected, tuple(shape)))
        else:  # no tree with so few levels and ranks is that large
            every.append(every[-1])
    return every


def greedy(chances: Sequence[float], most: int, depth: int) -> Best:
    """The tree that takes the most probable next node `most` times."""
    shape, expected = list[tuple[int, int]](), 0.0
    heap = [(-chances[0], 0, -1, 0, 1)] if most and depth else []
    pushed = 0
    while heap and len(shape) < most:
        chance, _, parent, rank, level = heappop(heap)
        shape.append((parent, rank))
        expected -= chance
        if rank + 1 < len(chances):
            above = -chance / chances[rank] if chances[rank] else 0.0
            pushed += 1
            sibling = -above * chances[rank + 1]
            heappush(heap, (sibling, pushed, parent, rank + 1, level))
        if level < depth:
            pushed += 1
            child = chance * chances[0]
            heappush(heap, (child, pushed, len(shape) - 1, 0, level + 1))
    return Best(expected, tuple(shape))
