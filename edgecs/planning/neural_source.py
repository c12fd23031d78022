"""Neural drafters under a planner: their expected speedup and their drafting loop.

Each neural drafter is a cascade: in every step it reviews as many tokens of a cheaper
drafter as its own cost curve justifies (vertical cascade), often none. The planner
extends the draft while that raises the round's expected tokens per second.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from itertools import accumulate
from operator import mul
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Choose, Draft, Row
from edgecs.core.faults import blaming
from edgecs.costs.cost_model import WIDEST, CostModel
from edgecs.costs.overlap import FAR
from edgecs.decoding.cascade import Cascade, NamedModel, Round, confidences
from edgecs.decoding.static_schedule import Clock, Outcome
from edgecs.planning.acceptance import Calibration, Evidence, stated
from edgecs.planning.review_schedule import PartialDraft, ReviewSchedule
from edgecs.planning.row_siblings import MOST, RowSiblings, Sibling, Walked
from edgecs.planning.sources import Sources
from edgecs.planning.trees import Trees
from edgecs.sampling.chain import Choices

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
        trees: Trees | None = None,
    ) -> None:
        self.name = named.name
        self.leaves = named.model.max_leaves
        removable = getattr(named.model, "snapshots", None)
        span = getattr(named.model, "span", None)
        reviewed = trees.reviewed(self.leaves) if trees and self.leaves > 1 else None
        self.review = ReviewSchedule(sources, cheaper, reviewed, removable, span)
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

    def fits(self, tokens: int, drafted: int) -> bool:
        """Whether a call may have this many tokens, `drafted` of them in a draft."""
        return self.has_room(tokens) and drafted <= self.cascade.reviewer.max_draft

    def seconds_of(self, depth: int, tokens: int) -> float:
        """Seconds of a call; as many calls of one token if its width was not timed."""
        if not self.costs.known:
            return math.inf
        times = _wider(self._seconds(depth))
        return float(min(times[tokens - 1], tokens * times[0]))

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
        missing = self._missing(context)
        usual = self._reading(len(context), min(missing, 2))
        return usual, max(0.0, self._reading(len(context), missing) - usual)

    def _missing(self, context: Context) -> int:
        """How many tokens it has not read, at least one."""
        reader = self.cascade.reviewer
        if unread := getattr(reader, "unread", None):
            return int(unread(context, self.cascade.sequence))
        known = self._read[1] if self._read and self._read[0] is context.root else 0
        return max(1, len(context) - known)

    def _reading(self, depth: int, tokens: int) -> float:
        """Seconds that reading this many tokens adds to a step, which reads one."""
        if not self.costs.known:
            return 0.0
        times = _wider(self._seconds(depth))
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
        step = float(self._seconds(depth)[0])
        emitted = 1 + np.cumsum(self.acceptance_rate**count)
        spent = _wider(times)[1 : FAR + 1] + count * step + more
        return np.asarray(emitted / (spent + emitted * each))

    def should_extend(
        self,
        draft: PartialDraft,
        times: NDArray[np.float64],
        depth: int,
        worth: float = 0.0,
    ) -> bool:
        """Whether more tokens raise the expected rate of the round.

        Compares marginal gain with marginal cost up to FAR tokens ahead, because times
        are not monotone. worth: tokens that a draft made ahead is worth, which follows
        if all of this draft and the drafter's next token are right.
        """
        follows = np.array([*draft.path, draft.certainty * self.acceptance_rate])
        sure = np.cumsum([1.0, *draft.path])
        size = sure.size
        if size > WIDEST - 1 or not self.has_room(depth + size - 1):
            return False
        wide = _wider(times)
        gained = sure + worth * follows
        now = float((gained / (wide[:size] + draft.seconds)).max())
        count = np.arange(1, min(FAR, WIDEST - size) + 1)
        step = float(self._seconds(depth)[0]) if self.costs.known else 0.0
        chance = draft.certainty * self.acceptance_rate**count
        then = sure[-1] + np.cumsum(chance) + worth * self.acceptance_rate * chance
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
        with blaming(self.name):
            done, here = self._step(draft, context, choose, most)
            first = len(draft.tokens)
            draft.tokens += done.tokens
            draft.sources += done.sources
            said = confidences(done, here, choose)
            draft.confidences += said
            same = confirmed(copy, draft.tokens)[first:]
            odds = map(self._acceptance.odds, stated(said, same, first))
            draft.path += [*accumulate(odds, mul, initial=draft.certainty)][1:]
            if branches:
                self._note_siblings(draft, done, here, choose, said, first)

    def _step(
        self, draft: PartialDraft, context: Context, choose: Choose, most: int
    ) -> tuple[Round, Context]:
        """A round of its cascade after a draft, and the context of that."""
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
        return done, here

    def _note_siblings(
        self,
        draft: PartialDraft,
        done: Round,
        here: Context,
        choose: Choose,
        said: Sequence[float],
        first: int,
    ) -> None:
        """Note what the rows of a step rank after each of its tokens."""
        view = here
        for at, (node, token) in enumerate(
            zip((-1, *done.verdict.path), done.tokens, strict=True), first
        ):
            row, sure = done.rows.logits[node + 1], said[at - first]
            walked = tuple(draft.tokens[:at])
            draft.ranked[walked] = self._siblings(row, view, choose, sure, at)
            view = view.with_tail((token,))

    def _siblings(
        self, row: Row, view: Context, choose: Choose, sure: float, depth: int
    ) -> list[Sibling]:
        """The tokens that a row ranks after its choice, whose probability is `sure`."""
        ranked = choose.alternatives(row, view.tokens, MOST)
        found = self.row_siblings.described(ranked, sure, depth)
        return [Sibling(*one, self.name, self._sibling_acceptance) for one in found]

    def written(
        self, context: Context, choose: Choose, size: int, *, branches: bool
    ) -> PartialDraft:
        """At most `size` tokens for a larger drafter, see `write`."""
        draft, ends = PartialDraft(), self.cascade.ends
        size = min(size, self.cascade.reviewer.n_ctx - len(context) + 1)
        while len(draft.tokens) < size:
            self.write(draft, context, choose, size, NOTHING, branches=branches)
            if draft.tokens[-1] in ends:
                break
        return draft

    def rank(
        self,
        draft: PartialDraft,
        context: Context,
        choose: Choose,
        before: Walked,
        tree: Draft,
        wanted: Mapping[int, Walked],
    ) -> None:
        """Compute the rows after several nodes in one call, and note what they rank.

        before: tokens of the chain before the tree. tree: the nodes to compute. wanted:
        those whose rows are needed, with all draft tokens up to each. Raises Faulty if
        this drafter fails.
        """
        with blaming(self.name):
            here = context.with_tail(before) if before else context
            rows, seconds = self.cascade.rows_after(here, tree)
            self.review.timed(rows.fed, len(here), seconds)
            draft.seconds += seconds
            for node, walked in wanted.items():
                row, depth = rows.logits[node + 1], len(walked)
                view = here.with_tail(walked[len(before) :])
                token = choose(row, view.tokens)
                sure = choose.confidence(row, view.tokens, token)
                (buckets,) = stated([sure], [None], depth)
                own = Sibling(token, buckets, self.name, self._acceptance)
                others = self._siblings(row, view, choose, sure, depth)
                draft.ranked[walked] = [own, *others]

    def resumed(
        self,
        tokens: list[int],
        sources: list[str],
        confidences: list[float],
        copy: Draft,
    ) -> PartialDraft:
        """A draft of tokens that were written before the context was committed.

        copy: Max-Gram's proposal after the context. It has taken no time.
        """
        same = confirmed(copy, tokens)
        odds = map(self._acceptance.odds, stated(confidences, same))
        return PartialDraft(tokens, sources, confidences, [*accumulate(odds, mul)])

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
        step, share = float(self._seconds(depth)[0]), self.acceptance_rate
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

    def _seconds(self, depth: int) -> NDArray[np.float64]:
        """Seconds of its calls by width, [WIDEST]. depth: tokens of the context."""
        return np.array(self.review.times(depth))

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
