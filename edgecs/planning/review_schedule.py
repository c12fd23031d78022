"""The schedule of a neural drafter under a planner: what it reviews in one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Context
from edgecs.core.draft import Choose, Draft, Drafter
from edgecs.costs.cost_model import WIDEST, Choice, CostModel, best_width
from edgecs.costs.rollback_cost import RollbackCost
from edgecs.decoding.cascade import Cascade
from edgecs.decoding.exactness import EVERY, Allowed
from edgecs.decoding.static_schedule import Gathered, Outcome
from edgecs.planning.row_siblings import Sibling, Walked
from edgecs.planning.sources import Sources
from edgecs.planning.trees import BRANCHING, CHEAPER, Trees


@dataclass
class PartialDraft:
    """A draft under construction; all lists have the same length.

    ranked: what its drafters rank after some of its nodes, without its own tokens.
    """

    tokens: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    path: list[float] = field(default_factory=list)
    ranked: dict[Walked, list[Sibling]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def certainty(self) -> float:
        """Probability that all its tokens are right."""
        return self.path[-1] if self.path else 1.0

    def chain(self) -> Draft:
        """Its tokens as a draft."""
        return Draft.chain(self.tokens, self.sources, self.confidences)


class Reviewed(Protocol):
    """A cheaper neural drafter, see `neural_source.NeuralSource`."""

    name: str
    cascade: Cascade
    review: ReviewSchedule

    def can_draft(self, context: Context) -> bool:
        """Whether it has room for the context, and what it needs of its target."""

    def expected_rates(
        self, depth: int, times: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Expected tokens per second by drafted tokens; empty: not known."""

    def written(
        self, context: Context, choose: Choose, size: int, *, branches: bool
    ) -> PartialDraft:
        """At most `size` tokens, with siblings if they have `branches`."""


class ReviewSchedule:
    """What a neural drafter reviews: a copy, or the draft of a cheaper drafter.

    trees: adds siblings to them for a drafter that takes trees; None: it reviews
    chains. removable: tokens of a reviewed draft that the drafter removes at no cost,
    see `RollbackCost`. span: most tokens of a context that it reads, None: all.
    """

    def __init__(
        self,
        sources: Sources,
        cheaper: Reviewed | None,
        trees: Trees | None = None,
        removable: int | None = None,
        span: int | None = None,
    ) -> None:
        self.costs = CostModel()
        self.span = span
        self._removable = removable
        self.reading = 0.0  # seconds per token when many are read, 0: not known
        self._sources = sources
        self._cheaper = cheaper
        self._trees = trees

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        """The drafters that are reviewed."""
        cheaper = (self._cheaper.cascade,) if self._cheaper else ()
        return (*cheaper, *self._sources.all)

    def begin(self) -> None:
        """Do nothing: no state belongs to one answer."""

    def draft(
        self,
        context: Context,
        choose: Choose,
        most: int,
        allowed: Allowed = EVERY,
        together: int = 1,
    ) -> Gathered:
        """The draft that pays for its review; empty while call times are unknown."""
        if not self.costs.known:
            return Gathered(Draft.chain((), ""), ())
        most, depth = min(most, WIDEST - 1), len(context)
        (saves,) = self.costs.times(self._depth(depth), 1)
        found = self._sources.propose(context, most, token_seconds=saves)
        times = self._times(depth, found.path)
        choice, part = best_width(found.path, times), PartialDraft()
        grows = self._trees is not None and self._trees.may_grow(depth)
        if self._cheaper and self._cheaper.can_draft(context):
            without = np.array(self._times(depth))
            rates = self._cheaper.expected_rates(depth, without)[:most]
            if rates.size and rates.max() > choice.rate:
                size = int(rates.argmax()) + 1
                part = self._cheaper.written(context, choose, size, branches=grows)
                # All of it is reviewed, as expected when it was chosen.
                spent = times[len(part.tokens)] + part.seconds
                rate = (1 + sum(part.path)) / spent
                choice = Choice(1 + len(part.tokens), rate)
        path = part.path if part.tokens else found.path
        chain = part.chain() if part.tokens else found.draft()
        draft = chain.clip(choice.width - 1)
        if grows:
            spends = [seconds + part.seconds for seconds in times]
            draft = self._branched(context, chain, path, most, spends, choice, part)
        return Gathered(draft, draft.sources if part.tokens else found.sources)

    def _branched(
        self,
        context: Context,
        chain: Draft,
        path: list[float],
        most: int,
        times: Sequence[float],
        choice: Choice,
        part: PartialDraft,
    ) -> Draft:
        """A tree around a chain if it is better; else the chain in its best width."""
        assert self._trees is not None
        least = self.costs.least_more(self._depth(len(context))) * CHEAPER
        tree = self._trees.grow(context, chain, path, most, least, part.ranked)
        grown = best_width(tree.path, times)
        better = grown.rate > choice.rate * (1 + BRANCHING)
        self._trees.compared(better=better)
        if not better:
            return chain.clip(choice.width - 1)
        return tree.draft.clip(grown.width - 1)

    def learn(self, context: Context, outcome: Outcome) -> None:
        """Update the call times of the drafter."""
        self.timed(outcome.rows.fed, len(context), outcome.calling)

    def timed(self, fed: int, depth: int, seconds: float) -> None:
        """Update the call times from a call of `fed` tokens."""
        if fed <= WIDEST:
            self.costs.observe(fed, self._depth(depth), seconds)
        else:
            self.reading = seconds / fed

    def times(self, depth: int) -> list[float]:
        """Seconds of the drafter's calls by width. depth: tokens of the context."""
        return self.costs.times(self._depth(depth))

    def _times(self, depth: int, path: Sequence[float] = ()) -> list[float]:
        """Seconds by width, with those that a rejection is expected to cost later."""
        times = self.times(depth)
        if self._removable is None:
            return times
        rollback = RollbackCost(self.costs, self._removable)
        lost = rollback.rejected(self._depth(depth), path, len(times))
        return [now + later for now, later in zip(times, lost, strict=True)]

    def _depth(self, depth: int) -> int:
        return depth if self.span is None else min(depth, self.span)

    def park(self, name: str) -> None:
        """Replace a failed drafter with the next cheaper one."""
        self._sources.park(name)
        if self._trees:
            self._trees.park(name)
        if self._cheaper and self._cheaper.name == name:
            self._cheaper = self._cheaper.review._cheaper

    def describe(self) -> str:
        """Return a one-line description of the schedule."""
        return "planned"
