"""Trees: the drafts with the most expected tokens for every number of nodes.

A node's path probability is that of its parent times that of its token, given that the
siblings before it are wrong. The nodes with the largest path probabilities form a tree,
as no node is more probable than its parent. They are taken from a heap in descending
order (DySpec, arXiv 2410.11744), so that the first n nodes are the best tree of n
nodes, and the width of the call is chosen as for a chain.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    Container,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from heapq import heappop, heappush
from itertools import groupby
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from edgecs.core.context import Context
from edgecs.core.draft import Draft
from edgecs.core.faults import blame
from edgecs.drafters.copies import GRAM
from edgecs.drafters.source import LOOKED_AT, Branches
from edgecs.planning.acceptance import Acceptance, Calibration
from edgecs.planning.row_siblings import Sibling, Walked
from edgecs.planning.sources import NEGLIGIBLE, Path

# chosen: a tree is worth its uncertain siblings only where it is clearly better.
BRANCHING = 0.02  # relative gain over a chain that a tree must be expected to have
# chosen: one more token may cost less than the average one, as within a tile.
CHEAPER = 0.7  # share of the average cost below which no node of a tree is considered
# chosen: sources name the likely tokens first.
_IN_VAIN = 2  # unlikely candidates of a source after which the others are left out
# chosen: growing a tree then takes a seventeenth of the time that it took.
_PATIENCE, _LONGEST_REST = 8, 16  # misses before rounds without trees, and their limit

Ranked = Mapping[Walked, Sequence[Sibling]]
"""What a neural drafter ranks after some draft tokens, the best first."""

_NO_RANKS: Ranked = MappingProxyType({})


class Tree(NamedTuple):
    """A draft whose nodes are in the order of their path probabilities."""

    draft: Draft
    path: Path  # [nodes], descending


class _Expanded(NamedTuple):
    """The candidates after one node; first: the token of the chain, or None."""

    first: int | None
    siblings: list[Sibling]


class _Waiting(NamedTuple):
    at: int  # tokens of the context, and of the true path so far
    walked: Walked  # the true path so far
    expanded: dict[Walked, _Expanded]


class Trees:
    """Grows trees around chains, and learns how often siblings are right.

    leaves: most leaves of a draft. allowed: whether drafts may be trees at a depth; not
    where rows have to be those of plain decoding. ends: end-of-generation tokens, after
    which nothing follows.
    """

    def __init__(
        self,
        branches: Sequence[Branches],
        calibration: Calibration,
        leaves: int,
        *,
        allowed: Callable[[int], bool] = lambda depth: True,
        ends: Container[int] = (),
    ) -> None:
        self._calibration = calibration
        self._sound = [(one, calibration.source(one)) for one in branches]
        self._leaves, self._allowed, self._ends = leaves, allowed, ends
        self._misses = 0  # trees in a row that were not better than their chains
        self._rest = 0  # rounds until the next tree is grown
        self._waiting: list[_Waiting] = []
        self._root: Context | None = None
        self._teaches = True

    def reviewed(self, leaves: int) -> Trees:
        """Trees of the same branches for a drafter that reviews them.

        They do not learn: the text shows what the target has chosen, and this drafter
        may have chosen otherwise. leaves: most leaves of its drafts.
        """
        calibration, ends = self._calibration, self._ends
        branches = [one for one, _ in self._sound]
        inner = Trees(branches, calibration, leaves, ends=ends)
        inner._teaches = False
        return inner

    def park(self, name: str) -> None:
        """Stop using the branches of a source that failed."""
        self._sound = [pair for pair in self._sound if pair[0].label != name]

    def may_grow(self, depth: int) -> bool:
        """Whether the draft of a round, after `depth` tokens, may be a tree.

        Where trees are not better than chains they are grown in few rounds only.
        """
        # The last token of the context is computed by the same call.
        if self._leaves < 2 or not self._allowed(depth - 1):
            return False
        if self._rest:
            self._rest -= 1
            return False
        return True

    def compared(self, *, better: bool) -> None:
        """Note whether a tree was better than its chain."""
        self._misses = 0 if better else self._misses + 1
        if self._misses >= _PATIENCE:
            self._rest = min(self._misses - _PATIENCE + 1, _LONGEST_REST)

    def grow(
        self,
        context: Context,
        chain: Draft,
        path: Path,
        most: int,
        least: float,
        ranked: Ranked = _NO_RANKS,
    ) -> Tree:
        """The best nodes around a chain, at most `most`, the best first.

        path: probability that the chain is right up to each token. least: path
        probability, for each token that the round emits anyway, below which a node
        cannot pay. ranked: further candidates, of the chain's own drafter. Of several
        trees for one context the last one is learned from.
        """
        for branches, _ in self._sound:
            try:
                branches.sync(context)
            except Exception as error:
                blame(error, branches.label)
        grower = _Grower(self._sound, context, chain, path, ranked)
        tree = grower.grow(most, max(least, NEGLIGIBLE), self._leaves, self._ends)
        if self._teaches:
            at = len(context)
            if self._waiting and self._waiting[-1][:2] == (at, ()):
                self._waiting.pop()
            self._waiting.append(_Waiting(at, (), grower.expanded))
        return tree

    def settle(self, context: Context) -> None:
        """Learn from the siblings at positions that the text has decided."""
        if context.root is not self._root:
            self.close()
            self._root = context.root
        if not self._waiting:
            return
        shown, first = context.committed, min(one.at for one in self._waiting)
        true = context.tokens[first:shown].tolist()
        still = (_taught(one, true[one.at - first :]) for one in self._waiting)
        self._waiting = [one for one in still if one is not None]

    def close(self) -> None:
        """End the answer: what was not decided is forgotten."""
        self._waiting = []


def _taught(tree: _Waiting, true: list[int]) -> _Waiting | None:
    """Learn from the tokens after `tree.at`; None if no later one is in the tree."""
    at, walked, expanded = tree
    for token in true:
        here = expanded.get(walked)
        if here is None:
            return None
        at, walked = at + 1, (*walked, token)
        if token == here.first:
            continue
        for sibling in here.siblings:
            right = sibling.token == token
            sibling.acceptance.learn((sibling.buckets,), int(right), not right)
            if right:
                break
    return _Waiting(at, walked, expanded) if walked in expanded else None


class _Grower:
    """The nodes of one tree."""

    def __init__(
        self,
        sound: Sequence[tuple[Branches, Acceptance]],
        context: Context,
        chain: Draft,
        path: Path,
        ranked: Ranked,
    ) -> None:
        self._sound, self._ranked = sound, ranked
        self._chain, self._chances = chain.tokens.tolist(), path
        self._labels, self._stated = chain.sources, chain.confidences.tolist()
        self._end = tuple(context.tokens[-GRAM:].tolist())
        self.expanded: dict[Walked, _Expanded] = {}
        self._heap: list[tuple[float, int, _Node]] = []
        self._pushed = 0

    def grow(self, most: int, least: float, leaves: int, ends: Container[int]) -> Tree:
        """See `Trees.grow`."""
        tokens, parents, labels = list[int](), list[int](), list[str]()
        stated, path = list[float](), Path()
        inner, free = set[int](), leaves
        self._expand(-1, (), 1.0, 0, least)
        emitted = 1.0  # expected tokens of the round
        while self._heap and len(tokens) < most:
            chance, _, node = heappop(self._heap)
            if -chance < emitted * least:
                break
            # A first child takes the place of its parent among the leaves.
            takes = node.parent in inner or node.parent < 0
            if takes and not free:
                continue
            free -= takes
            inner.add(node.parent)
            tokens.append(node.token)
            parents.append(node.parent)
            labels.append(node.label)
            stated.append(node.stated)
            path.append(-chance)
            emitted -= chance
            if node.token not in ends and len(tokens) < most:
                enough = emitted * least
                self._expand(len(tokens) - 1, node.walked, -chance, node.along, enough)
        draft = Draft(
            np.array(tokens, dtype=np.int32),
            np.array(parents, dtype=np.int32),
            tuple(labels),
            np.array(stated, dtype=np.float64),
        )
        if draft.is_chain:
            draft = Draft.chain(tokens, labels, stated)
        return Tree(draft, path)

    def _expand(
        self,
        parent: int,
        walked: Walked,
        chance: float,
        along: int | None,
        least: float,
    ) -> None:
        """Push the candidates after a node.

        along: tokens of the chain up to the node, None: it has left the chain.
        """
        first, rest = None, chance
        if along is not None and along < len(self._chain):
            first, sure = self._chain[along], self._chances[along]
            rest = max(0.0, chance - sure)
            if sure >= least:
                said = self._labels[along], self._stated[along]
                self._push(sure, parent, first, *said, walked, along + 1)
        if rest < least:
            return
        siblings = list[Sibling]()
        self.expanded[walked] = _Expanded(first, siblings)
        seen = {first}
        for label, acceptance, candidates in self._candidates(walked):
            unlikely = 0
            for token, buckets in candidates:
                if token in seen:
                    continue
                seen.add(token)
                siblings.append(Sibling(token, buckets, label, acceptance))
                share = rest * acceptance.odds(buckets, doubt=0.0)
                rest -= share
                if share >= least:
                    self._push(share, parent, token, label, 1.0, walked)
                elif (unlikely := unlikely + 1) == _IN_VAIN:
                    break
                if rest < least:
                    return

    def _candidates(
        self, walked: Walked
    ) -> Iterator[tuple[str, Acceptance, Iterable[tuple[int, Sequence[int]]]]]:
        """The candidates after a node, by source: its label and acceptance first."""
        ranked = self._ranked.get(walked, ())
        for _, group in groupby(ranked, key=lambda one: id(one.acceptance)):
            own = [*group]
            found = [(one.token, one.buckets) for one in own]
            yield own[0].label, own[0].acceptance, found
        depth = len(walked)
        if depth < LOOKED_AT:
            end = (*self._end, *walked)[-GRAM:]
            for branches, acceptance in self._sound:
                try:
                    yield branches.label, acceptance, branches.successors(end, depth)
                except Exception as error:
                    blame(error, branches.label)

    def _push(
        self,
        chance: float,
        parent: int,
        token: int,
        label: str,
        stated: float,
        walked: Walked,
        along: int | None = None,
    ) -> None:
        node = _Node(parent, token, label, stated, (*walked, token), along)
        self._pushed += 1  # of equal ones the first pushed, which is deterministic
        heappush(self._heap, (-chance, self._pushed, node))


class _Node(NamedTuple):
    parent: int
    token: int
    label: str
    stated: float  # probability by its drafter, 1: not stated
    walked: Walked  # draft tokens up to it
    along: int | None  # tokens of the chain up to it, None: it is beside the chain
