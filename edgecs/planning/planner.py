"""The adaptive schedule: every round drafts what should bring the most tokens a second.

With path probabilities c_1 >= c_2 >= ... of the drafted tokens a call of n tokens
emits 1 + c_1 + ... + c_(n-1) of them on average and takes T(n); the width with the best
ratio is taken, and n = 1 is always among them. Times are measured, probabilities
calibrated, and both learn from every round, so a planner has nothing to set.

Rounds slower than plain decoding are the cardinal sin: a width must promise MARGIN more
than plain decoding, and trying what is not known may cost BUDGET of the time.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Choose, Draft, Drafter
from edgecs.costs.cost_model import (
    SETTLED,
    TRYING,
    WIDEST,
    Choice,
    CostModel,
    best_width,
)
from edgecs.decoding.cascade import NamedModel
from edgecs.decoding.exactness import EVERY, Allowed, permitted
from edgecs.decoding.static_schedule import Clock, Gathered, Outcome, Plan
from edgecs.drafters.source import LOOKED_AT, Source
from edgecs.planning.acceptance import Calibration
from edgecs.planning.neural_source import Writer, Written
from edgecs.planning.pending import Ledger, Path, Sources

# chosen: a smaller gain is lost in the error of the times.
MARGIN = 0.02  # share by which a draft must promise more than plain decoding
# chosen: after two lost calls a draft must promise a tenth more.
CAUTION = 0.05  # by which the margin grows with each plain call's time that was lost
# chosen: half of a loss is forgotten after 69 rounds.
FORGIVES = 0.99  # share of what was lost that still counts a round later
# chosen: hostile drafters then cost 1 to 2 % (`edgecs_bench.simulation.replay`).
BUDGET = 0.02  # share of the time that may be lost on trying things
# chosen: a look takes a part of a short call, and the pace changes slowly.
_LOOKS = 4  # of so many calls of one token in a row the time of one is looked at
# chosen: in every round they took 5 % of a token of 5 ms (head, SmolLM2 Q4_1).
_RESTS = 8  # rounds until drafters that promise less than plain decoding are asked
# chosen: an answer that ends then is a tenth slower at most.
_FELT = 0.1  # share of an answer so far that asking a parked drafter may take
# chosen: five times what a round takes by itself (`edgecs_bench.overhead`).
_PAUSE = 0.002  # seconds; more between two rounds is somebody else's time
# chosen: about the last 20 rounds count.
_LATELY = 0.05  # weight of a round in the time that lies between calls
_NOTHING = "nothing was proposed"
_HOPELESS = "nothing promises more than plain decoding"


class _Desk(NamedTuple):
    """What a round starts from."""

    context: Context
    choose: Choose
    most: int  # draft tokens
    times: NDArray[np.float64]  # [WIDEST] seconds of a round by width
    copy: Draft  # what a source proposes
    choice: Choice  # the best use of that alone


class Planner:
    """Decides in every round who drafts, and how much of it is verified.

    costs: of the target. sources: drafters without a model, the usually best one first.
    models: neural drafters, the best first, each of which may review the next one and
    the sources. longest: most tokens in a
    draft. ends: end-of-generation tokens. clock: gives seconds.
    """

    def __init__(
        self,
        costs: CostModel,
        calibration: Calibration,
        sources: Sequence[Source],
        models: Sequence[NamedModel] = (),
        *,
        longest: int = WIDEST - 1,
        lenience: float = 1.0,
        ends: Container[int] = (),
        clock: Clock = perf_counter,
    ) -> None:
        self.costs = costs
        self.calibration = calibration
        self.ledger = Ledger()
        self.sources = Sources(sources, calibration, ends)
        writers: list[Writer] = []
        for named in reversed(models):
            cheaper = writers[0] if writers else None
            acceptance = calibration.drafter(named.name)
            writer = Writer(
                named,
                acceptance,
                self.sources,
                cheaper,
                lenience=lenience,
                ends=ends,
                clock=clock,
            )
            writers.insert(0, writer)
        self.writers = tuple(writers)
        self._sound = self.writers  # those that have not failed
        self._longest = min(longest, WIDEST - 1)
        self._ends = ends
        self._clock = clock
        self._overhead = 0.0  # seconds of a round outside of all calls
        self._busy = 0.0  # seconds of all calls
        self._debt = 0.0  # what drafts lost lately, in plain calls
        self._start = 0  # tokens before the first round of the answer; 0: no round yet
        self._lost = 0.0  # seconds lost on trying
        self._singles: int | None = None  # calls of one token since a wider one;
        #                                   None: since the prompt was read
        self._rest = 0  # rounds for which no writer is asked
        self._stays = 0.0  # share of wider calls that another one followed, lately
        self._began: float | None = None  # when the round under way began
        self._called = 0.0  # seconds of its calls
        self._writing = 0.0  # of these, seconds of its writers
        self._invested = 0.0  # of these, for what a drafter had missed
        self._trying = False

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        """Neural drafters and sources."""
        return (*(writer.cascade for writer in self.writers), *self.sources.all)

    def begin(self) -> None:
        """A new answer: what was learnt fast in the last one is dropped."""
        self.ledger.close()
        self.calibration.begin()
        for writer in self.writers:
            writer.begin()
        self._began, self._debt, self._start = None, 0.0, 0
        self._singles, self._rest = None, 0

    def draft(
        self, context: Context, choose: Choose, most: int, allowed: Allowed = EVERY
    ) -> Gathered:
        """The draft that promises most; see the module."""
        self._mark()
        self.ledger.settle(context)
        self._trying, self._writing, self._invested = False, 0.0, 0.0
        if not most or not self.costs.known:
            return Gathered(NOTHING, ())
        most, self._start = min(most, self._longest), self._start or len(context)
        asks = self._asks()
        least = 0.0 if asks else self._least(len(context))
        found = self.sources.propose(context, most, self.ledger, least)
        path = found.path
        if not asks and (not path or path[0] < least):
            return Gathered(NOTHING, found.sources, self._idle(len(context), path))
        size = WIDEST if asks else 1 + len(path)
        times = self._times(len(context), allowed, size)
        choice = best_width(path, times, MARGIN + CAUTION * self._debt)
        if asks:
            desk = _Desk(context, choose, most, np.array(times), found.draft(), choice)
            if leaders := self._leaders(desk):
                return self._write(desk, leaders)
        choice = self._try(path, len(context), allowed, choice)
        draft = found.draft(choice.width - 1)
        return Gathered(draft, found.sources, self._plan(path, times, choice))

    def learn(self, context: Context, outcome: Outcome) -> None:
        """Corrects the times; acceptances are learnt when the text has gone on."""
        width = 1 + len(outcome.draft)
        spent = self._called = outcome.calling + self._writing
        if outcome.together > 1:  # its time is not that of this width, nor is its pause
            self._singles = self._began = None
            return
        if outcome.rows.fed != width:  # it read the prompt, or a part of it
            self._singles = None
            return
        settling = self._settling if width > 1 else 0.0
        self._observe(width, len(context), outcome.calling)
        self._busy += spent
        if width > 1 or self._writing:
            emitted = 1 + len(outcome.verdict.path)
            (single,) = self.costs.times(len(context), 1)
            over = (spent + settling) / single - emitted
            self._debt = max(0.0, self._debt + over - self._invested / single)
            if self._trying:
                self._lost += max(0.0, over) * spent / (over + emitted)
        self._debt *= FORGIVES

    def park(self, name: str) -> None:
        """Leaves a drafter alone that failed."""
        self.sources.park(name)
        self._sound = tuple(writer for writer in self._sound if writer.name != name)

    def _observe(self, width: int, depth: int, seconds: float) -> None:
        """Corrects the target's times by a call."""
        singles = self._singles
        if singles == 0:
            self._stays += _LATELY * ((width > 1) - self._stays)
        if width > 1:
            self._singles = 0
        elif singles is None:  # reading a prompt slows it down otherwise
            self._singles = SETTLED
            return
        else:
            self._singles = singles + 1
            if singles > SETTLED and singles % _LOOKS:  # they say the same
                return
        self.costs.observe(width, depth, seconds, singles or 0)

    @property
    def _settling(self) -> float:
        """Seconds that a wider call costs the calls after it, if it is one now.

        Wider calls in a row cost it once, so each of them its part.
        """
        return self.costs.settling * (1 - self._stays) if self._singles else 0.0

    def describe(self) -> str:
        """That it decides round by round."""
        return "planned round by round"

    @property
    def to_lose(self) -> float:
        """Seconds that may be lost on trying something now."""
        return max(0.0, BUDGET * self._busy - self._lost)

    def _mark(self) -> None:
        """Measures what a round takes besides its calls."""
        now = self._clock()
        if self._began is not None:
            own = now - self._began - self._called
            if 0 < own < _PAUSE:
                self._overhead += _LATELY * (own - self._overhead)
        self._began, self._called = now, 0.0

    def _times(self, depth: int, allowed: Allowed, size: int) -> list[float]:
        """Seconds of a round by width, [size]; inf where it may not be used."""
        single, *wider = self.costs.times(depth, size)
        more = self._overhead + self._settling
        times = [single + self._overhead, *(seconds + more for seconds in wider)]
        return times if allowed is EVERY else permitted(times, allowed)

    def _least(self, depth: int) -> float:
        """The chance of being right without which a copy's first token cannot pay.

        Not where a writer is asked: a copy confirms what it writes, however unlikely.
        """
        least = self.costs.least_more(depth)
        if self._singles:  # no more than what a part of the settling makes of it
            full = self.costs.least_more(depth, settles=True)
            least += (1 - self._stays) * (full - least)
        return least

    def _try(self, path: Path, depth: int, allowed: Allowed, choice: Choice) -> Choice:
        """A width that was hardly tried, if it may be better and can be afforded."""
        most, is_young = 1 + len(path), self.costs.is_young
        young = [n for n in TRYING if n <= most and is_young(n) and allowed[n - 1]]
        if not young:
            return choice
        times = self._times(depth, allowed, WIDEST)
        best, more = self.costs.hoped(depth), self._overhead + self._settling
        hoped = times.copy()
        for n in young:
            hoped[n - 1] = best[n - 1] + more
        maybe = best_width(path, hoped, MARGIN)
        if maybe.rate <= choice.rate or maybe.width not in young:
            return choice
        if self._at_stake(path, times, maybe.width) > self.to_lose:
            return choice
        self._trying = True
        return maybe

    def _at_stake(self, path: Path, times: list[float], width: int) -> float:
        """Seconds that a round of a width nobody knows is expected to lose at worst."""
        known = max(n for n in range(1, width + 1) if times[n - 1] < math.inf)
        worst = times[known - 1] * width / known
        ends = [1.0, *path[: width - 1], 0.0]  # chance that so many are right
        return sum(
            (ends[n - 1] - ends[n]) * max(0.0, worst - n * times[0])
            for n in range(1, width + 1)
        )

    def _asks(self) -> bool:
        """Whether neural drafters are thought about in this round."""
        if not self._sound:
            return False
        if not self._rest:
            return True
        self._rest -= 1
        for writer in self._sound:
            writer.passed()
        return False

    def _leaders(self, desk: _Desk) -> tuple[Writer, ...]:
        """The neural drafters that write in this round, the best first; often none."""
        depth = len(desk.context)
        better = desk.choice.rate * (1 + MARGIN + CAUTION * self._debt)
        leaders: tuple[Writer, ...] = ()
        # Only a try could tell more about one that promises less than plain decoding.
        hopes = (1 + MARGIN) / float(desk.times[0])
        self._rest = _RESTS
        for i, writer in enumerate(self._sound):
            if not (writer.known and writer.has_room(depth)):
                continue
            # An answer is expected to go on for as many tokens as it has.
            more, arrears = writer.catching_up(desk.context)
            each = arrears / max(1, depth - self._start)
            rates = writer.promise(depth, desk.times, more, each)
            best = float(rates[: desk.most].max(initial=0))
            if best > hopes:
                self._rest = 0
            if best > better:
                better, leaders = best, self._sound[i:]
        rate = better if leaders else desk.choice.rate
        for i, writer in enumerate(self._sound):
            if writer in leaders:
                writer.tried(paid=True)
                writer.parked = None
                continue
            writer.parked = depth, desk.times, rate
            if writer.may_be_tried() and self._affordable(writer, desk):
                writer.tried(paid=False)
                self._trying = True
                return self._sound[i : i + 1]
        return leaders

    def _affordable(self, writer: Writer, desk: _Desk) -> bool:
        """Whether asking a parked drafter for a token or two fits the budget."""
        if not writer.has_room(len(desk.context)):
            return False
        single = float(desk.times[0])
        step = float(writer.costs.seconds(0)[0]) if writer.costs.known else single
        reads = sum(writer.catching_up(desk.context))
        # Nor may it be felt in this answer, which may be a short one.
        here = _FELT * single * (len(desk.context) - self._start)
        return step + reads + single <= min(self.to_lose, here)

    def _write(self, desk: _Desk, leaders: Sequence[Writer]) -> Gathered:
        """A draft of neural drafters, the best one first, and a copied tail."""
        context, written, depth = desk.context, Written(), len(desk.context)
        self._invested = leaders[0].catching_up(context)[1]
        for writer in leaders:
            if written.tokens and written.tokens[-1] in self._ends:
                break
            first = len(written.tokens)
            begun = self._trying  # a try writes at least one token
            while len(written.tokens) < desk.most and (
                begun or writer.goes_on(written, desk.times, depth)
            ):
                begun = False
                writer.write(written, context, desk.choose, desk.most, desk.copy)
                if written.tokens[-1] in self._ends:
                    break
            if len(written.tokens) > first == 0:
                evidence = writer.evidence(written, desk.copy, first)
                self.ledger.note(context, written.tokens, evidence, writer)
        self._writing = written.seconds
        draft = Draft.chain(written.tokens, written.sources, written.confidences)
        path = written.path.copy()
        if len(draft) and int(draft.tokens[-1]) not in self._ends:
            here = context.with_tail(draft.tokens)
            tail = self.sources.propose(here, desk.most - len(draft))
            draft = draft.then(tail.draft())
            path += [written.certainty * chance for chance in tail.path]
        times = desk.times.tolist()
        choice = best_width(path, [seconds + written.seconds for seconds in times])
        if self._trying and choice.width == 1 and times[1] < math.inf:
            choice = Choice(2, choice.rate)
        plan = self._plan(path, times, choice)
        return Gathered(draft.clip(choice.width - 1), draft.sources, plan)

    def _idle(self, depth: int, path: Path) -> Plan:
        """The plan where it is clear at once that no draft pays, which is most often.

        It looks at nothing else: in a round of 4 ms every hundredth counts.
        """
        plain = 1 / (self.costs.times(depth, 1)[0] + self._overhead)
        return Plan(path, plain, plain, [1], _HOPELESS if path else _NOTHING)

    def _plan(self, path: Path, times: list[float], choice: Choice) -> Plan:
        reason = "promises most"
        if self._trying:
            reason = "tried, because little is known about it"
        elif not path:
            reason = _NOTHING
        elif choice.width == 1:
            reason = _HOPELESS
        seen = enumerate(times[: len(path) + 1], 1)
        known = [n for n, seconds in seen if seconds < math.inf]
        return Plan(path[:LOOKED_AT], choice.rate, 1 / times[0], known, reason)
