"""Neural drafters under a planner: what they promise, and how they write.

A writer is a cascade of its own: in every step it reviews as many tokens of a cheaper
drafter as its own cost curve makes worth while (vertical cascade), often none. The
planner lets it go on while that raises the expected tokens a second of the round.
"""

from __future__ import annotations

from collections.abc import Container
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
from edgecs.decoding.cascade import Cascade, NamedModel, confidences
from edgecs.decoding.exactness import EVERY, Allowed
from edgecs.decoding.static_schedule import Clock, Gathered, Outcome
from edgecs.planning.acceptance import Acceptance, Evidence, stated
from edgecs.planning.pending import Sources
from edgecs.sampling.chain import Choices

# chosen: of a drafter that is right in 60 % the ninth token is right in 1 %.
FAR = 8  # tokens that a writer is looked ahead
# chosen: high enough to be tried, and soon outweighed.
_HOPED, _WEIGHT = 0.6, 4.0  # acceptance of a drafter nobody knows, counted as tokens
# chosen: about an answer's worth, so that an answer can correct it.
_TAUGHT = 50  # tokens that the experience of earlier runs counts for
# chosen: a share of fewer tokens says little.
_ENOUGH = 8  # tokens that have to show before a drafter is relied on
# chosen: about the last 100 tokens, and the last 12 of an answer.
_SLOW, _FAST = 0.01, 0.08  # least weight of a token in what is usual
# chosen: doubled after each try, so 8 tries in the first 4,080 rounds.
_FIRST_WAIT, _LAST_WAIT = 16, 4096  # rounds between two tries of a parked drafter


class Review:
    """The schedule of a writer: what it reviews in one step."""

    def __init__(self, sources: Sources, cheaper: Writer | None) -> None:
        self.costs = CostModel()
        self.reading = 0.0  # seconds a token of long stretches, 0: not known
        self._sources = sources
        self._cheaper = cheaper

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        """Who is reviewed."""
        cheaper = (self._cheaper.cascade,) if self._cheaper else ()
        return (*cheaper, *self._sources.all)

    def begin(self) -> None:
        """Nothing belongs to one answer."""

    def draft(
        self, context: Context, choose: Choose, most: int, allowed: Allowed = EVERY
    ) -> Gathered:
        """What is worth a review; nothing as long as the writer's times are unknown."""
        if not self.costs.known:
            return Gathered(Draft.chain((), ""), ())
        times = self.costs.times(len(context))
        found = self._sources.propose(context, min(most, WIDEST - 1))
        choice = best_width(found.path, times)
        if self._cheaper:
            rates = self._cheaper.promise(len(context), np.array(times))
            if rates.size and rates[:most].max(initial=0) > choice.rate:
                size = int(rates[:most].argmax()) + 1
                try:
                    part = self._cheaper.cascade.propose(context, size, choose)
                except Exception as error:
                    blame(error, self._cheaper.name)
                return Gathered(part.clip(size), part.sources)
        return Gathered(found.draft(choice.width - 1), found.sources)

    def learn(self, context: Context, outcome: Outcome) -> None:
        """Corrects the writer's times."""
        fed = outcome.rows.fed
        if fed <= WIDEST:
            self.costs.observe(fed, len(context), outcome.calling)
        else:
            self.reading = outcome.calling / fed

    def park(self, name: str) -> None:
        """The next cheaper drafter takes the place of one that failed."""
        self._sources.park(name)
        if self._cheaper and self._cheaper.name == name:
            self._cheaper = self._cheaper.review._cheaper

    def describe(self) -> str:
        """That it decides step by step."""
        return "planned"


@dataclass
class Written:
    """A draft while it is written; sizes of all lists are equal."""

    tokens: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    path: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def certainty(self) -> float:
        """Probability that all of it is right."""
        return self.path[-1] if self.path else 1.0


class Writer:
    """A neural drafter, its times, and how often it is right."""

    def __init__(
        self,
        named: NamedModel,
        acceptance: Acceptance,
        sources: Sources,
        cheaper: Writer | None = None,
        *,
        lenience: float = 1.0,
        ends: Container[int] = (),
        clock: Clock = perf_counter,
    ) -> None:
        self.name = named.name
        self.review = Review(sources, cheaper)
        self.cascade = Cascade(
            named.model,
            self.review,
            ends=ends,
            name=named.name,
            lenience=lenience,
            clock=clock,
        )
        # Depth, times by width and the rate to be beaten when it last did not pay.
        self.parked: tuple[int, NDArray[np.float64], float] | None = None
        self._acceptance = acceptance
        self._kept = self._now = _HOPED  # share of right tokens: always, in this answer
        self._heard = 0  # tokens whose worth showed
        self._read: tuple[Context, int] | None = None  # what its cache holds
        self._wait, self._waited = _FIRST_WAIT, 0

    @property
    def costs(self) -> CostModel:
        """Of its calls."""
        return self.review.costs

    @property
    def usual(self) -> float:
        """Share of its tokens that were right lately, those before them being right."""
        return self._now

    @property
    def kept(self) -> float:
        """The same over all answers."""
        return self._kept

    def taught(self, share: float) -> None:
        """Takes over what was usual in earlier runs."""
        self._kept = self._now = min(max(share, 0.0), 1.0)
        self._heard = _TAUGHT

    def begin(self) -> None:
        """A new answer: what the last one taught fast is forgotten."""
        self._now = self._kept

    def learn(self, evidence: Evidence, right: int, decided: bool) -> None:
        """What came of its tokens, see `Acceptance.learn`."""
        self._acceptance.learn(evidence, right, decided)
        if right:  # it may have turned good
            self._wait = _FIRST_WAIT
        for i in range(right + decided):
            self._heard += 1
            self._kept += max(_SLOW, 1 / (self._heard + _WEIGHT)) * (
                (i < right) - self._kept
            )
            self._now += max(_FAST, 1 / (self._heard + _WEIGHT)) * (
                (i < right) - self._now
            )

    @property
    def known(self) -> bool:
        """Whether its share was measured, and is not just hoped for."""
        return self._heard >= _ENOUGH

    def has_room(self, tokens: int) -> bool:
        """Whether its context holds so many."""
        return tokens <= self.cascade.reviewer.n_ctx

    def catching_up(self, context: Context) -> tuple[float, float]:
        """Seconds for the tokens that it has not read: every round's, and arrears.

        After a round in which it wrote it has missed two tokens, its own last one and
        the one that its reviewer chose. What it missed besides, such as the prompt, has
        to be read once.
        """
        known = self._read[1] if self._read and self._read[0] is context.root else 0
        missing = max(1, len(context) - known)
        usual = self._reading(len(context), min(missing, 2))
        return usual, max(0.0, self._reading(len(context), missing) - usual)

    def _reading(self, depth: int, tokens: int) -> float:
        """Seconds that reading so many tokens adds to a step, which reads one."""
        if not self.costs.known:
            return 0.0
        times = _wider(self.costs.seconds(depth))
        if tokens <= WIDEST and np.isfinite(times[tokens - 1]):
            return float(times[tokens - 1] - times[0])
        return tokens * (self.review.reading or float(times[0]) / 8)

    def promise(
        self,
        depth: int,
        times: NDArray[np.float64],
        more: float = 0.0,
        each: float = 0.0,
    ) -> NDArray[np.float64]:
        """Tokens a second with 1 to FAR tokens of it, [tokens]; empty: not known.

        times: of the reviewer's calls by width. more: seconds to be added to a round,
        each: to every token that it emits.
        """
        if not self.costs.known:
            return np.empty(0)
        count = np.arange(1, FAR + 1)
        step = float(self.costs.seconds(depth)[0])
        emitted = 1 + np.cumsum(self.usual**count)
        spent = _wider(times)[1 : FAR + 1] + count * step + more
        return np.asarray(emitted / (spent + emitted * each))

    def goes_on(self, draft: Written, times: NDArray[np.float64], depth: int) -> bool:
        """Whether more of its tokens raise what the round promises.

        Marginal gain against marginal cost, looked at FAR tokens ahead because times
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
        then = sure[-1] + draft.certainty * np.cumsum(self.usual**count)
        spent = wide[size : size + count.size] + draft.seconds + count * step
        return bool((then / spent).max() > now)

    def write(
        self, draft: Written, context: Context, choose: Choose, most: int, copy: Draft
    ) -> None:
        """One step: appends what it chose, and how likely that is right.

        copy: what Max-Gram proposed at the start of the draft. Raises Faulty where it,
        or a drafter that it reviews, fails.
        """
        try:
            self._write(draft, context, choose, most, copy)
        except Exception as error:
            blame(error, self.name)

    def _write(
        self, draft: Written, context: Context, choose: Choose, most: int, copy: Draft
    ) -> None:
        here = context.with_tail(draft.tokens) if draft.tokens else context
        model = self.cascade.reviewer
        room = min(most - len(draft.tokens) - 1, model.n_ctx - len(here))
        done = self.cascade.attempt(
            here, Choices(choose, choose), min(room, model.max_draft)
        )
        # Max-Gram is not told: its bigrams are the target's.
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

    def evidence(self, draft: Written, copy: Draft, first: int) -> Evidence:
        """Buckets of its tokens in a draft, from `first` on."""
        same = confirmed(copy, draft.tokens)[first:]
        return stated(draft.confidences[first:], same, first)

    def may_be_tried(self) -> bool:
        """Whether a parked drafter has waited long enough."""
        self.passed()
        return self._waited >= self._wait

    def passed(self) -> None:
        """A round went by in which it was parked."""
        self._waited += 1

    def tried(self, paid: bool) -> None:
        """Longer waits after every try, once it is known not to pay."""
        self._waited = 0
        if paid or not self.known:
            self._wait = _FIRST_WAIT
        else:
            self._wait = min(2 * self._wait, _LAST_WAIT)

    @property
    def standing(self) -> str:
        """Whether it writes; if not, what it would have to reach, and what it does."""
        if self.parked is None:
            return f"in use, {self.usual:.0%} of its tokens are right"
        if not self.costs.known:
            return "parked: its times are not known yet"
        depth, times, better = self.parked
        step, usual = float(self.costs.seconds(depth)[0]), self.usual
        rates = ((a, self._at(a / 100, step, times)) for a in range(101))
        needed = next((a for a, rate in rates if rate > better), None)
        says = (
            "no acceptance would be enough"
            if needed is None
            else f"it would need {needed} % of its tokens right"
        )
        if better > 1 / times[0]:  # the rate of plain decoding
            says += " beside the draft of another"
        has = f"it has {usual:.0%}" if self.known else "it was hardly tried yet"
        return f"parked: {step * 1e3:.1f} ms a token, {says}, {has}"

    def _at(self, a: float, step: float, times: NDArray[np.float64]) -> float:
        count = np.arange(1, FAR + 1)
        spent = _wider(times)[1 : FAR + 1] + count * step
        return float(((1 + np.cumsum(a**count)) / spent).max())


def _wider(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds of the cheapest call that has room for so many tokens."""
    return np.minimum.accumulate(times[::-1])[::-1]


def confirmed(copy: Draft, tokens: list[int]) -> list[bool | None]:
    """Whether Max-Gram says the same, as long as it did before."""
    same: list[bool | None] = []
    for i, token in enumerate(tokens):
        says = i < len(copy) and False not in same
        same.append(token == int(copy.tokens[i]) if says else None)
    return same
