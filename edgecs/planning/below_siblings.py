"""Branches below siblings, from the rows of a neural drafter.

A drafter's rows along its chain name the siblings of the chain's tokens, but not what
follows a sibling. A drafter that takes trees (`LanguageModel.max_leaves`) computes the
rows after several siblings in one call (tree attention, SpecInfer, arXiv 2305.09781).
The call is made where it is expected to raise the tokens per second of the round, as
everything else in a draft, for the siblings with the largest path probabilities. Its
rows rank further nodes, so the tree may grow by another call.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import NamedTuple

import numpy as np

from edgecs.core.context import Context
from edgecs.core.draft import Choose, Draft
from edgecs.costs.cost_model import WIDEST, best_width
from edgecs.costs.overlap import FAR
from edgecs.planning.neural_source import NeuralSource
from edgecs.planning.review_schedule import PartialDraft
from edgecs.planning.row_siblings import Walked
from edgecs.planning.trees import BRANCHING, Ranked, Tree

Grow = Callable[[Ranked], Tree]
"""Returns the best tree with the candidates that a drafter ranks, see `Trees.grow`."""


class Lookahead(NamedTuple):
    """A call for the rows after some nodes of a tree."""

    before: Walked  # tokens of the chain that all these nodes follow
    tree: Draft  # the nodes to compute: these and those above them
    wanted: dict[int, Walked]  # nodes of `tree` with a new row, with their paths


def deepened(
    grow: Grow,
    source: NeuralSource,
    draft: PartialDraft,
    context: Context,
    choose: Choose,
    times: Sequence[float],
    ends: Container[int] = (),
) -> Tree:
    """The best tree around a draft, with the rows of `source` that pay for their calls.

    times: seconds of the round by width, without those of the draft, to which the calls
    are added. Raises Faulty if the drafter fails.
    """
    tree = grow(draft.ranked)
    if source.leaves < 2:
        return tree
    for _ in range(FAR):
        call = _best_call(tree, source, draft, len(context), times, ends)
        if call is None:
            break
        source.rank(draft, context, choose, *call)
        tree = grow(draft.ranked)
    return tree


def _best_call(
    tree: Tree,
    source: NeuralSource,
    draft: PartialDraft,
    depth: int,
    times: Sequence[float],
    ends: Container[int],
) -> Lookahead | None:
    """The call with the most expected tokens per second; None if none pays."""
    spent = [seconds + draft.seconds for seconds in times]
    best = best_width(tree.path, spent).rate * (1 + BRANCHING)
    walked, chosen = paths(tree.draft), None
    nodes = _unranked(tree.draft, walked, draft, ends)
    for count in range(1, min(len(nodes), source.leaves) + 1):
        call = lookahead(tree.draft, walked, draft.tokens, nodes[:count])
        fed = 1 + len(call.tree)
        room = depth + len(call.before) + len(call.tree)
        if fed > WIDEST or not source.fits(room, len(call.tree)):
            break
        seconds = source.seconds_of(depth, fed)
        path = expected(tree, nodes[:count], source.acceptance_rate)
        rate = best_width(path, [each + seconds for each in spent]).rate
        if rate > best:
            best, chosen = rate, call
    return chosen


def paths(tree: Draft) -> list[Walked]:
    """The draft tokens up to each node, [nodes]."""
    found: list[Walked] = []
    for parent, token in zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True):
        found.append((*found[parent], token) if parent >= 0 else (token,))
    return found


def _unranked(
    tree: Draft, walked: Sequence[Walked], draft: PartialDraft, ends: Container[int]
) -> list[int]:
    """The nodes beside the chain whose rows are not known, the most probable first."""
    chain = tuple(draft.tokens)
    return [
        node
        for node, path in enumerate(walked)
        if path != chain[: len(path)]
        and path[: len(chain)] != chain  # a copied tail has no rows
        and path not in draft.ranked
        and path[-1] not in ends
    ]


def lookahead(
    tree: Draft, walked: Sequence[Walked], chain: Sequence[int], wanted: Sequence[int]
) -> Lookahead:
    """The call for the rows after some nodes, with as few nodes as possible.

    The tokens of the chain that are above all of them belong to its context.
    """
    before = min(_shared(chain, walked[node]) for node in wanted)
    parents, nodes = tree.parents.tolist(), set[int]()
    for node in wanted:
        while node >= 0 and len(walked[node]) > before:
            nodes.add(node)
            node = parents[node]
    order = sorted(nodes)  # parents come first in the tree
    place = {node: i for i, node in enumerate(order)}
    part = Draft(
        tree.tokens[order],
        np.array([place.get(parents[node], -1) for node in order], dtype=np.int32),
        tuple(tree.sources[node] for node in order),
        tree.confidences[order],
    )
    return Lookahead(
        tuple(chain[:before]), part, {place[node]: walked[node] for node in wanted}
    )


def _shared(chain: Sequence[int], path: Walked) -> int:
    """Number of first tokens that a path shares with the chain."""
    pairs = enumerate(zip(chain, path, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(chain), len(path)))


def expected(tree: Tree, nodes: Sequence[int], right: float) -> list[float]:
    """Path probabilities with a token of the drafter after each of some nodes.

    right: probability of such a token. It takes the place of the best child that the
    node has already, which may be the same token.
    """
    best: dict[int, int] = {}
    for node, parent in enumerate(tree.draft.parents.tolist()):
        best.setdefault(parent, node)  # the first child is the most probable one
    path = dict(enumerate(tree.path))
    for node in nodes:
        child = best.get(node)
        at = len(path) if child is None else child
        path[at] = max(path.get(at, 0.0), tree.path[node] * right)
    return sorted(path.values(), reverse=True)
