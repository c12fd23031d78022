"""Schedules that draft trees of a given size: DySpec's growth and Sequoia's shape.

Both have the candidates of the planner, in its order: the chain first, then the
siblings of every source. They do not look at the time of a call, so one replay serves
every cost curve.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Choose, Draft, Drafter
from edgecs.costs.cost_model import WIDEST
from edgecs.decoding.exactness import EVERY, Allowed
from edgecs.decoding.static_schedule import Gathered, Outcome
from edgecs.drafters.copies import GRAM
from edgecs.drafters.registry import branches_of
from edgecs.drafters.source import Source
from edgecs.planning.acceptance import Calibration
from edgecs.planning.pending import Ledger
from edgecs.planning.sources import Proposed, Sources
from edgecs.planning.trees import Trees
from edgecs_bench.simulation.tree_shapes import Shape

RANKS = 8  # candidates of a node that have a probability of their own


class Grown:
    """The most probable nodes of every round (DySpec, arXiv 2410.11744).

    most: nodes of a tree. least: path probability of a node below which the tree ends.
    The probabilities are those that the planner learns.
    """

    def __init__(
        self, sources: Sequence[Source], *, most: int = WIDEST - 1, least: float = 0.0
    ) -> None:
        self.sources = sources
        self._calibration, self._ledger = Calibration(), Ledger()
        self._sources = Sources(sources, self._calibration)
        self._trees = Trees(branches_of(sources), self._calibration, WIDEST)
        self._most, self._least = most, least

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        """The sources."""
        return (*self.sources,)

    def begin(self) -> None:
        """Start a new answer, as the planner does."""
        self._ledger.close()
        self._trees.close()
        self._calibration.begin()

    def draft(
        self,
        context: Context,
        choose: Choose,
        most: int,
        allowed: Allowed = EVERY,
        together: int = 1,
    ) -> Gathered:
        """The best tree of the given size."""
        self._ledger.settle(context)
        self._trees.settle(context)
        most = min(most, self._most)
        found = self._sources.propose(context, most, self._ledger)
        return self._drawn(context, found, most)

    def _drawn(self, context: Context, found: Proposed, most: int) -> Gathered:
        if not most:
            return Gathered(NOTHING, ())
        tree = self._trees.grow(context, found.draft(), found.path, most, 0.0)
        draft = tree.draft.clip(sum(p >= self._least for p in tree.path))
        return Gathered(draft, draft.sources)

    def learn(self, context: Context, outcome: Outcome) -> None:
        """Do nothing: the size is fixed."""

    def park(self, name: str) -> None:
        """Do nothing: these sources do not fail."""

    def describe(self) -> str:
        """Return a one-line description of the schedule."""
        return f"{self._most} nodes of at least {self._least:g}"


class Shaped(Grown):
    """A static tree (Sequoia, arXiv 2402.12374), filled with candidates by rank.

    A node without a candidate of its rank is left out, with all nodes below it. `seen`
    counts the right ranks at the positions of all rounds, -1: none.
    """

    def __init__(self, sources: Sequence[Source], shape: Shape) -> None:
        super().__init__(sources)
        self._shape, self._branches = shape, branches_of(sources)
        self._asked: list[int] | None = None  # candidates after the last context
        self.seen: Counter[int] = Counter()

    def draft(
        self,
        context: Context,
        choose: Choose,
        most: int,
        allowed: Allowed = EVERY,
        together: int = 1,
    ) -> Gathered:
        """The tree, as far as there are candidates."""
        self._asked = None
        return super().draft(context, choose, most, allowed, together)

    def _drawn(self, context: Context, found: Proposed, most: int) -> Gathered:
        for branches in self._branches:
            branches.sync(context)
        end, chain = context.tokens[-GRAM:].tolist(), found.tokens
        self._asked = self._after(end, (), chain)
        known: dict[int, tuple[tuple[int, ...], list[int]]] = {-1: ((), self._asked)}
        place = {-1: -1}
        tokens, parents = list[int](), list[int]()
        for node, (parent, rank) in enumerate(self._shape[:most]):
            if parent not in known or rank >= len(known[parent][1]):
                continue
            token = known[parent][1][rank]
            walked = (*known[parent][0], token)
            known[node] = walked, self._after(end, walked, chain)
            place[node] = len(tokens)
            tokens.append(token)
            parents.append(place[parent])
        if not tokens:
            return Gathered(NOTHING, ())
        names, stated = ("tree",) * len(tokens), np.ones(len(tokens))
        ids = np.array(tokens, dtype=np.int32), np.array(parents, dtype=np.int32)
        return Gathered(Draft(*ids, names, stated), names)

    def _after(
        self, end: list[int], walked: tuple[int, ...], chain: list[int]
    ) -> list[int]:
        """The candidates after a node, each once."""
        found = dict[int, None]()
        size = len(walked)
        if size < len(chain) and [*walked] == chain[:size]:
            found[chain[size]] = None
        for branches in self._branches:
            last = [*end, *walked][-GRAM:]
            found.update(dict.fromkeys(t for t, _ in branches.successors(last, size)))
        return [*found][:RANKS]

    def learn(self, context: Context, outcome: Outcome) -> None:
        """Count the rank of the first token of the round."""
        if self._asked is None:
            return
        path, draft = outcome.verdict.path, outcome.draft
        token = int(draft.tokens[path[0]]) if path else outcome.verdict.token
        asked = self._asked
        self.seen[asked.index(token) if token in asked else -1] += 1

    def chances(self) -> list[float]:
        """The share of the positions where the token of each rank was right."""
        total = max(1, sum(self.seen.values()))
        return [self.seen[rank] / total for rank in range(RANKS)]
