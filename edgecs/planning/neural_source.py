"""Neural drafters under a planner: their expected speedup and their drafting loop.

Each neural drafter is a cascade: in every step it reviews as many tokens of a cheaper
drafter as its own cost curve justifies (vertical cascade), often none. The planner
extends the draft while that raises the round's expected tokens per second.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Context
from edgecs.core.draft import Choose, Draft, Drafter
from edgecs.core.faults import blame
from edgecs.costs.cost_model import WIDEST, CostModel, best_width
from edgecs.costs.rollback_cost import RollbackCost
from edgecs.decoding.cascade import Cascade, NamedModel, Round, confidences
from edgecs.decoding.exactness import EVERY, Allowed
from edgecs.decoding.static_schedule import Clock, Gathered, Outcome
from edgecs.planning.acceptance import Calibration, Evidence, stated
from edgecs.planning.pending import Sources
from edgecs.planning.row_siblings import MOST, RowSiblings, Sibling
from edgecs.sampling.chain import Choices

# chosen: if 60 % of a drafter's tokens are right, 1 % of its ninth tokens are.
FAR = 8  # tokens of lookahead
# chosen: high enough for a new drafter to be tried, and soon outweighed.
_HOPED, _WEIGHT = 0.6, 4.0  # prior share of right tokens, and its weight in tokens
# chosen: about the length of an answer, so that one answer can correct it.
_TAUGHT = 50  # weight, in tokens, of a share learned in earlier runs
# chosen: a share of fewer tokens is too noisy.
_ENOUGH = 8  # observed tokens before the share of a drafter is used
# chosen: about the last 100 tokens, and the last 12 of an answer.
_SLOW, _FAST = 0.01, 0.08  # least weight of a token in the moving averages
# chosen: doubled after each try, so 8 tries in the first 4,080 rounds.
_FIRST_WAIT, _LAST_WAIT = 16, 4096  # rounds between two tries of a parked drafter


class ReviewSchedule:
    """The schedule of a neural drafter: what it reviews in one step.

    removable: tokens of a reviewed draft that the drafter removes at no cost, see
    `RollbackCost`.
    """

    def __init__(
        self,
        sources: Sources,
        cheaper: NeuralSource | None,
        removable: int | None = None,
    ) -> None:
        self.costs = CostModel()
        self._removable = removable
        self.reading = 0.0  # seconds per token when many are read, 0: not known
        self._sources = sources
        self._cheaper = cheaper

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        """The drafters that are reviewed."""
        cheaper = (self._cheaper.cascade,) if self._cheaper else ()
        return (*cheaper, *self._sources.all)

    def begin(self) -> None:
        """Do nothing: there is no state of a single answer."""

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
        depth = len(context)
        found = self._sources.propose(context, min(most, WIDEST - 1))
        choice = best_width(found.path, self._times(depth, found.path))
        if self._cheaper and self._cheaper.can_draft(context):
            times = np.array(self._times(depth))
            rates = self._cheaper.expected_rates(depth, times)
            if rates.size and rates[:most].max(initial=0) > choice.rate:
                size = int(rates[:most].argmax()) + 1
                try:
                    part = self._cheaper.cascade.propose(context, size, choose)
                except Exception as error:
                    blame(error, self._cheaper.name)
                return Gathered(part.clip(size), part.sources)
        return Gathered(found.draft(choice.width - 1), found.sources)

    def _times(self, depth: int, path: Sequence[float] = ()) -> list[float]:
        """Seconds by width, with those that a rejection is expected to cost later."""
        times = self.costs.times(depth)
        if self._removable is None:
            return times
        rollback = RollbackCost(self.costs, self._removable)
        lost = rollback.rejected(depth, path, len(times))
        return [now + later for now, later in zip(times, lost, strict=True)]

    def learn(self, context: Context, outcome: Outcome) -> None:
        """Update the call times of the drafter."""
        fed = outcome.rows.fed
        if fed <= WIDEST:
            self.costs.observe(fed, len(context), outcome.calling)
        else:
            self.reading = outcome.calling / fed

    def park(self, name: str) -> None:
        """Replace a failed drafter with the next cheaper one."""
        self._sources.park(name)
        if self._cheaper and self._cheaper.name == name:
            self._cheaper = self._cheaper.review._cheaper

    def describe(self) -> str:
        """Return a one-line description of the schedule."""
        return "planned"


@dataclass
class PartialDraft:
    """A draft under construction; all lists have the same length."""

    tokens: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    path: list[float] = field(default_factory=list)
    others: list[list[Sibling]] = field(default_factory=list)  # of each token
    seconds: float = 0.0

    @property
    def certainty(self) -> float:
        """Probability that all its tokens are right."""
        return self.path[-1] if self.path else 1.0


class NeuralSource:
    """A neural drafter with its call times and its share of right tokens."""

    def __init__(
        self,
        named: NamedModel,
        calibration: Calibration,
        sources: Sources,
        cheaper: NeuralSource | None = None,
        *,
        lenience: float = 1.0,
        ends: Container[int] = (),
        clock: Clock = perf_counter,
    ) -> None:
        self.name = named.name
        removable = getattr(named.model, "snapshots", None)
        self.review = ReviewSchedule(sources, cheaper, removable)
        self.cascade = Cascade(
            named.model,
            self.review,
            ends=ends,
            name=named.name,
            lenience=lenience,
            clock=clock,
        )
        # Depth, times by width and the rate to beat when it last did not pay.
        self.parked: tuple[int, NDArray[np.float64], float] | None = None
        self.row_siblings = RowSiblings(named.name)
        self._acceptance = calibration.drafter(named.name)
        self._sibling_acceptance = calibration.source(self.row_siblings)
        self._kept = self._now = _HOPED  # share of right tokens: overall, this answer
        self._observed = 0  # tokens whose outcome is known
        self._read: tuple[Context, int] | None = None  # content of its KV cache
        self._wait, self._waited = _FIRST_WAIT, 0

    @property
    def costs(self) -> CostModel:
        """Cost model of the drafter's calls."""
        return self.review.costs

    @property
    def acceptance_rate(self) -> float:
        """Recent share of right tokens, among those whose predecessors were right."""
        return self._now

    @property
    def long_term_rate(self) -> float:
        """The same share over all answers."""
        return self._kept

    def start_from(self, share: float) -> None:
        """Start from the share of right tokens of earlier runs."""
        self._kept = self._now = min(max(share, 0.0), 1.0)
        self._observed = _TAUGHT

    def begin(self) -> None:
        """Start a new answer: drop the fast average of the last one."""
        self._now = self._kept

    def learn(self, evidence: Evidence, right: int, decided: bool) -> None:
        """Learn from the outcome of its tokens, see `Acceptance.learn`."""
        self._acceptance.learn(evidence, right, decided)
        if right:  # its share may have improved
            self._wait = _FIRST_WAIT
        for i in range(right + decided):
            self._observed += 1
            self._kept += max(_SLOW, 1 / (self._observed + _WEIGHT)) * (
                (i < right) - self._kept
            )
            self._now += max(_FAST, 1 / (self._observed + _WEIGHT)) * (
                (i < right) - self._now
            )

    @property
    def observed(self) -> int:
        """Number of tokens whose outcome is known."""
        return self._observed

    @property
    def known(self) -> bool:
        """Whether the share is based on enough observed tokens."""
        return self._observed >= _ENOUGH

    def has_room(self, tokens: int) -> bool:
        """Whether the drafter's context has room for this many tokens."""
        return tokens <= self.cascade.reviewer.n_ctx

    def can_draft(self, context: Context) -> bool:
        """Whether it has room for the context, and what it needs of its target.

        A head needs states that the target has not computed before the first round.
        """
        ready = getattr(self.cascade.reviewer, "ready", None)
        return self.has_room(len(context)) and (ready is None or ready(context))

    def backlog_cost(self, context: Context) -> tuple[float, float]:
        """Seconds to read missing tokens: those of every round, and the backlog.

        After a round in which it drafted, it has not read two tokens: its own last one
        and the one that its reviewer chose. All other missing tokens, such as the
        prompt, are read once and are the backlog.
        """
        known = self._read[1] if self._read and self._read[0] is context.root else 0
        missing = max(1, len(context) - known)
        acceptance_rate = self._reading(len(context), min(missing, 2))
        return acceptance_rate, max(
            0.0, self._reading(len(context), missing) - acceptance_rate
        )

    def _reading(self, depth: int, tokens: int) -> float:
        """Seconds that reading this many tokens adds to a step, which reads one."""
        if not self.costs.known:
            return 0.0
        times = _wider(self.costs.seconds(depth))
        if tokens <= WIDEST and np.isfinite(times[tokens - 1]):
            return float(times[tokens - 1] - times[0])
        return tokens * (self.review.reading or float(times[0]) / 8)

    def expected_rates(
        self,
        depth: int,
        times: NDArray[np.float64],
        more: float = 0.0,
        each: float = 0.0,
    ) -> NDArray[np.float64]:
        """Expected tokens per second with 1 to FAR drafted tokens; empty: not known.

        times: seconds of the reviewer's calls by width. more: extra seconds per round.
        each: extra seconds per emitted token.
        """
        if not self.costs.known:
            return np.empty(0)
        count = np.arange(1, FAR + 1)
        step = float(self.costs.seconds(depth)[0])
        emitted = 1 + np.cumsum(self.acceptance_rate**count)
        spent = _wider(times)[1 : FAR + 1] + count * step + more
        return np.asarray(emitted / (spent + emitted * each))

    def should_extend(
        self, draft: PartialDraft, times: NDArray[np.float64], depth: int
    ) -> bool:
        """Whether more tokens raise the expected rate of the round.

        Compares marginal gain with marginal cost up to FAR tokens ahead, because times
        are not monotone.
        """
        sure = np.cumsum([1.0, *draft.path])
        size = sure.size
        if size > WIDEST - 1 or not self.has_room(depth + size - 1):
            return False
        wide = _wider(times)
        now = float((sure / (wide[:size] + draft.seconds)).max())
        count = np.arange(1, min(FAR, WIDEST - size) + 1)
        step = float(self.costs.seconds(depth)[0]) if self.costs.known else 0.0
        then = sure[-1] + draft.certainty * np.cumsum(self.acceptance_rate**count)
        spent = wide[size : size + count.size] + draft.seconds + count * step
        return bool((then / spent).max() > now)

    def write(
        self,
        draft: PartialDraft,
        context: Context,
        choose: Choose,
        most: int,
        copy: Draft,
        *,
        branches: bool = False,
    ) -> None:
        """Run one step and append its tokens and their path probabilities.

        copy: Max-Gram's proposal at the start of the draft. branches: append the
        siblings of its tokens too, for a tree. Raises Faulty if this
        drafter, or one that it reviews, fails.
        """
        try:
            self._write(draft, context, choose, most, copy, branches)
        except Exception as error:
            blame(error, self.name)

    def _write(
        self,
        draft: PartialDraft,
        context: Context,
        choose: Choose,
        most: int,
        copy: Draft,
        branches: bool,
    ) -> None:
        here = context.with_tail(draft.tokens) if draft.tokens else context
        model = self.cascade.reviewer
        room = min(most - len(draft.tokens) - 1, model.n_ctx - len(here))
        done = self.cascade.attempt(
            here, Choices(choose, choose), min(room, model.max_draft)
        )
        # Max-Gram does not observe this call: it learns the target's bigrams only.
        self.review.learn(
            here,
            Outcome(done.draft, done.rows, done.verdict, done.drafting, done.calling),
        )
        self._read = context.root, len(here)
        draft.seconds += done.drafting + done.calling
        first = len(draft.tokens)
        draft.tokens += done.tokens
        draft.sources += done.sources
        said = confidences(done, here, choose)
        draft.confidences += said
        same = confirmed(copy, draft.tokens)[first:]
        odds = map(self._acceptance.odds, stated(said, same, first))
        draft.path += [*accumulate(odds, mul, initial=draft.certainty)][1:]
        ranked = self._siblings(done, here, choose, said, first) if branches else []
        draft.others += ranked or [[] for _ in said]

    def _siblings(
        self,
        done: Round,
        here: Context,
        choose: Choose,
        said: Sequence[float],
        first: int,
    ) -> list[list[Sibling]]:
        """What the rows of a step rank after each of its tokens."""
        every, view = list[list[Sibling]](), here
        for at, (node, token) in enumerate(
            zip((-1, *done.verdict.path), done.tokens, strict=True)
        ):
            ranked = choose.alternatives(done.rows.logits[node + 1], view.tokens, MOST)
            found = self.row_siblings.described(ranked, said[at], first + at)
            acceptance = self._sibling_acceptance
            every.append([Sibling(*one, self.name, acceptance) for one in found])
            view = view.with_tail((token,))
        return every

    def evidence(self, draft: PartialDraft, copy: Draft, first: int) -> Evidence:
        """Buckets of the tokens of a draft from `first` on."""
        same = confirmed(copy, draft.tokens)[first:]
        return stated(draft.confidences[first:], same, first)

    def may_be_tried(self) -> bool:
        """Whether a parked drafter has waited long enough."""
        self.passed()
        return self._waited >= self._wait

    def passed(self) -> None:
        """Count a round in which the drafter was parked."""
        self._waited += 1

    def tried(self, paid: bool) -> None:
        """Reset the wait; double it if the drafter is known not to pay."""
        self._waited = 0
        if paid or not self.known:
            self._wait = _FIRST_WAIT
        else:
            self._wait = min(2 * self._wait, _LAST_WAIT)

    @property
    def status(self) -> str:
        """The drafter's state; if parked, the share it needs and the share it has."""
        if self.parked is None:
            return f"in use, {self.acceptance_rate:.0%} of its tokens are right"
        if not self.costs.known:
            return "parked: its times are not known yet"
        depth, times, better = self.parked
        step, share = float(self.costs.seconds(depth)[0]), self.acceptance_rate
        rates = ((a, self._at(a / 100, step, times)) for a in range(101))
        needed = next((a for a, rate in rates if rate > better), None)
        says = (
            "no acceptance would be enough"
            if needed is None
            else f"it would need {needed} % of its tokens right"
        )
        if better > 1 / times[0]:  # the rate of plain decoding
            says += " to beat another drafter"
        has = f"it has {share:.0%}" if self.known else "it was hardly tried yet"
        if self.known and needed is not None and needed <= 100 * share:
            has += " now and will be tried again"
        return f"parked: {step * 1e3:.1f} ms a token, {says}, {has}"

    def _at(self, a: float, step: float, times: NDArray[np.float64]) -> float:
        count = np.arange(1, FAR + 1)
        spent = _wider(times)[1 : FAR + 1] + count * step
        return float(((1 + np.cumsum(a**count)) / spent).max())


def _wider(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds of the cheapest call with room for each number of tokens."""
    return np.minimum.accumulate(times[::-1])[::-1]


def confirmed(copy: Draft, tokens: list[int]) -> list[bool | None]:
    """Whether Max-Gram proposes the same tokens; None after the first difference."""
    same: list[bool | None] = []
    for i, token in enumerate(tokens):
        says = i < len(copy) and False not in same
        same.append(token == int(copy.tokens[i]) if says else None)
    return same
