"""The adaptive schedule: every round uses the draft with the best expected throughput.

With path probabilities c_1 >= c_2 >= ... of the drafted tokens, a call of n tokens
emits 1 + c_1 + ... + c_(n-1) tokens on average and takes T(n) seconds. The planner
takes the width with the best ratio; n = 1, plain decoding, is always a candidate. Times
are measured, probabilities are calibrated, and both learn from every round, so a
planner has no settings.

Speculation must not be slower than plain decoding: a width must be expected to gain
MARGIN over it, and exploration may lose at most BUDGET of the time.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from functools import partial
from time import perf_counter

import numpy as np

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Choose, Draft, Drafter
from edgecs.costs.cost_model import (
    SETTLED,
    TRYING,
    WIDEST,
    Choice,
    CostModel,
    best_width,
    shared_times,
)
from edgecs.costs.rollback_cost import RollbackCost
from edgecs.decoding.cascade import NamedModel
from edgecs.decoding.exactness import EVERY, Allowed, permitted
from edgecs.decoding.static_schedule import Clock, Gathered, Outcome, Plan
from edgecs.drafters.source import LOOKED_AT, Source
from edgecs.planning.acceptance import Calibration
from edgecs.planning.ahead import Ahead, likely
from edgecs.planning.below_siblings import Grow, deepened
from edgecs.planning.neural_round import NeuralChoice, RoundInputs, extend
from edgecs.planning.neural_source import NeuralSource
from edgecs.planning.pending import Ledger
from edgecs.planning.review_schedule import PartialDraft
from edgecs.planning.sources import Path, Proposed, Sources
from edgecs.planning.trees import BRANCHING, CHEAPER, Tree, Trees

# chosen: a smaller gain is lost in the error of the times.
MARGIN = 0.02  # relative gain over plain decoding that a draft must be expected to have
# chosen: after two lost calls a draft must be expected to gain a tenth more.
CAUTION = 0.05  # growth of the margin for each lost plain call's time
# chosen: half of a loss is forgotten after 69 rounds.
FORGIVES = 0.99  # decay of the losses per round
# chosen: adversarial drafters then cost 1 to 2 % (`edgecs_bench.simulation.replay`).
BUDGET = 0.02  # share of the time that may be lost on exploration
# chosen: an observation takes a part of a short call, and the pace changes slowly.
_LOOKS = 4  # one in this many consecutive calls of one token is observed
# chosen: five times what a round takes by itself (`edgecs_bench.overhead`).
_PAUSE = 0.002  # seconds; a longer pause between rounds is not the planner's overhead
# chosen: about the last 20 rounds count.
_LATELY = 0.05  # weight of a round in the average time between calls
_NOTHING = "nothing was proposed"
_HOPELESS = "no draft is expected to beat plain decoding"


class Planner:
    """Chooses the drafters and the verified width of every round.

    costs: cost model of the target. sources: model-free drafters, usually the best one
    first. models: neural drafters, the best first, each of which may review the next
    one and the sources. longest: most tokens in a draft. ends: end-of-generation
    tokens. clock: returns seconds. rollback: cost of rejected drafts, None: they are
    removed at no cost. trees: adds siblings to chains, None: drafts are chains. ahead:
    lets a neural drafter go on during calls of the target, None: it waits.
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
        rollback: RollbackCost | None = None,
        trees: Trees | None = None,
        ahead: Ahead | None = None,
    ) -> None:
        self.costs, self.trees, self.ahead = costs, trees, ahead
        self.rollback = rollback or RollbackCost(costs)
        self.calibration = calibration
        self.ledger = Ledger()
        self.sources = Sources(sources, calibration, ends, clock)
        neural: list[NeuralSource] = []
        for named in reversed(models):
            cheaper = neural[0] if neural else None
            source = NeuralSource(
                named,
                calibration,
                self.sources,
                cheaper,
                lenience=lenience,
                ends=ends,
                clock=clock,
                trees=trees,
            )
            neural.insert(0, source)
        self.neural = tuple(neural)
        self._choice = NeuralChoice(neural)
        self._together = 1  # requests of the next call
        self._longest = min(longest, WIDEST - 1)
        self._ends = ends
        self._clock = clock
        self._overhead = 0.0  # seconds of a round outside of all calls
        self._busy = 0.0  # seconds of all calls
        self._debt = 0.0  # recent losses of drafts, in plain calls
        self._start = 0  # tokens before the first round of the answer; 0: no round yet
        self._lost = 0.0  # seconds lost on exploration
        self._singles: int | None = None  # calls of one token since a wider one;
        #                                   None: since the prompt was read
        self._stays = 0.0  # recent share of wider calls followed by another wider one
        self._began: float | None = None  # when the current round began
        self._called = 0.0  # seconds of its calls
        self._writing = 0.0  # seconds of its neural drafters, included in _called
        self._invested = 0.0  # seconds of a drafter's backlog, included in the round
        self._trying = False
        self._reads = False  # whether a drafter reads its backlog during the call
        self._assumed = 0  # first tokens of the draft that a drafter working ahead has

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        """Neural drafters and sources."""
        return (*(source.cascade for source in self.neural), *self.sources.all)

    def begin(self) -> None:
        """Start a new answer: drop the fast weights of the last one."""
        self.ledger.close()
        if self.trees:
            self.trees.close()
        self.calibration.begin()
        for source in self.neural:
            source.begin()
        if self.ahead:
            self.ahead.begin()
        self._began, self._debt, self._start = None, 0.0, 0
        self._singles = None
        self._choice.begin()
        self.rollback.behind = 0

    def allow(self, allowed: bool) -> None:
        """Whether the next answer uses stores of texts and may be added to them."""
        self.sources.allow(allowed)

    def draft(
        self,
        context: Context,
        choose: Choose,
        most: int,
        allowed: Allowed = EVERY,
        together: int = 1,
    ) -> Gathered:
        """The draft with the best expected throughput; see the module.

        together: where the call has several requests, drafters that are models draft
        one after the other while all of them wait, so their time counts in full, and
        that of the call only as the share of a request: the ratio is that of all
        answers together.
        """
        self._together = together
        self._mark()
        self.ledger.settle(context)
        if self.trees:
            self.trees.settle(context)
        self._trying, self._writing, self._invested = False, 0.0, 0.0
        self._reads = False
        if self.ahead:
            self.ahead.next_round()
        if not most or not self.costs.known:
            return Gathered(NOTHING, ())
        most, self._start = min(most, self._longest), self._start or len(context)
        asks = self._choice.asks()
        least = 0.0 if asks else self._least(len(context))
        found = self._copied(context, most, self.ledger, least)
        path = found.path
        grows = not asks and self._may_grow(len(context))
        if not (asks or grows or (path and path[0] >= least)):
            return Gathered(NOTHING, found.sources, self._idle(len(context), path))
        size = WIDEST if asks or grows else 1 + len(path)
        times = self._times(len(context), allowed, size, path)
        choice = best_width(path, times, MARGIN + CAUTION * self._debt)
        if asks:
            shares, best = times, choice
            if self._together > 1:
                shares = self._shares(times)
                best = best_width(path, shares, MARGIN + CAUTION * self._debt)
            inputs = RoundInputs(
                context,
                choose,
                most,
                np.array(shares),
                found.draft(),
                best,
                len(context) - self._start,
                self._together,
                self.ahead,
            )
            if self.ahead:
                made = self.ahead.take(context, most, inputs.copy)
                inputs = inputs._replace(made=made)
            margin = MARGIN + CAUTION * self._debt
            chosen = self._choice.chosen(inputs, margin, MARGIN, self.to_lose)
            self._trying = chosen.tries
            if chosen.sources:
                return self._write(inputs, chosen.sources)
            grows = self._may_grow(len(context))
        tree = None
        if grows:
            grow = self._growing(context, found.draft(), path, most)
            tree, choice = self._better(grow({}), times, choice)
            path = tree.path if tree else path
        choice = self._try(path, len(context), allowed, choice)
        size = choice.width - 1
        self._assumed = likely(path)
        draft = tree.draft.clip(size) if tree else found.draft(size)
        sources = tree.draft.sources if tree else found.sources
        return Gathered(draft, sources, self._plan(path, times, choice))

    def _copied(
        self,
        context: Context,
        most: int,
        ledger: Ledger | None = None,
        least: float = 0.0,
    ) -> Proposed:
        """The best proposal of the sources, see `Sources.propose`."""
        saves = math.inf
        if self.sources.have_stores:
            saves = self.costs.single(len(context))
        return self.sources.propose(context, most, ledger, least, saves)

    def _may_grow(self, depth: int) -> bool:
        return self.trees is not None and self.trees.may_grow(depth)

    def _growing(self, context: Context, chain: Draft, path: Path, most: int) -> Grow:
        """A function that grows the best tree around a chain."""
        assert self.trees is not None
        least = self.costs.least_more(len(context)) * CHEAPER
        return partial(self.trees.grow, context, chain, path, most, least)

    def _better(
        self, tree: Tree, times: Sequence[float], choice: Choice
    ) -> tuple[Tree | None, Choice]:
        """A tree and its best width, if it is better than the chain.

        times: seconds of a round by width. choice: the best width for the chain.
        """
        assert self.trees is not None
        grown = best_width(tree.path, times, MARGIN + CAUTION * self._debt)
        better = grown.rate > choice.rate * (1 + BRANCHING)
        self.trees.compared(better=better)
        return (tree, grown) if better else (None, choice)

    def learn(self, context: Context, outcome: Outcome) -> None:
        """Update the times; acceptances are updated when later tokens are known."""
        width = 1 + len(outcome.draft)
        waited = self.ahead.waited if self.ahead else 0.0
        spent = self._called = outcome.calling + self._writing + waited
        if self._reads:
            self._invested = waited
        behind = self.rollback.behind
        self.rollback.learn(len(outcome.draft), len(outcome.verdict.path))
        if outcome.together > 1:  # neither its time nor its pause is of this width
            self._singles = self._began = None
            self._busy += outcome.calling / outcome.together + self._writing
            if self._trying:
                self._lost += self._writing
            return
        if outcome.rows.fed != width:  # the call read the prompt, or a part of it
            self._singles = None
            if behind and outcome.rows.fed == width + behind:
                self._busy += spent
                self._lose(len(context), spent, 1 + len(outcome.verdict.path))
            return
        settling = self._settling if width > 1 else 0.0
        self._observe(width, len(context), outcome.calling)
        self._busy += spent
        if width > 1 or self._writing:
            emitted = 1 + len(outcome.verdict.path)
            self._lose(len(context), spent, emitted, settling)
        self._debt *= FORGIVES

    def _lose(
        self, depth: int, spent: float, emitted: int, settling: float = 0.0
    ) -> None:
        """Count what a round took more than plain decoding of its tokens."""
        single = self.costs.single(depth)
        over = (spent + settling) / single - emitted
        self._debt = max(0.0, self._debt + over - self._invested / single)
        if self._trying:
            self._lost += max(0.0, over) * spent / (over + emitted)

    def park(self, name: str) -> None:
        """Stop using a drafter that failed."""
        self.sources.park(name)
        if self.ahead:
            self.ahead.park(name)
        if self.trees:
            self.trees.park(name)
        self._choice.park(name)

    def _observe(self, width: int, depth: int, seconds: float) -> None:
        """Update the target's times from a call."""
        singles = self._singles
        if singles == 0:
            self._stays += _LATELY * ((width > 1) - self._stays)
        if width > 1:
            self._singles = 0
        elif singles is None:  # reading a prompt slows it down differently
            self._singles = SETTLED
            return
        else:
            self._singles = singles + 1
            if singles > SETTLED and singles % _LOOKS:  # a sample of them is enough
                return
        if self.ahead and self.ahead.worked:  # the times are those without a drafter
            self.ahead.observe(seconds / self.costs.times(depth, width)[-1])
        else:
            self.costs.observe(width, depth, seconds, singles or 0)

    @property
    def overlaps(self) -> bool:
        """Whether a drafter may go on during calls, see `Overlapping`."""
        return self.ahead is not None

    def go_on(self, context: Context, draft: Draft, choose: Choose, most: int) -> bool:
        """Let the drafter of this round go on during the call, see `Overlapping`."""
        ahead, width = self.ahead, 1 + len(draft)
        if ahead is None or ahead.source is None or self._together > 1:
            return False
        if width > WIDEST or self.costs.is_young(width):
            return False  # its time must be measured without a drafter first
        seconds = self.costs.times(len(context), width)[-1]
        base = draft.first_path.clip(self._assumed)
        return ahead.start(context, base, choose, min(most, self._longest), seconds)

    def come_back(self) -> int:
        """End the work of the drafter, see `Overlapping`."""
        return self.ahead.finish() if self.ahead else 0

    def close(self) -> None:
        """End the thread of a drafter that works ahead, see `Overlapping`."""
        if self.ahead:
            self.ahead.close()

    @property
    def _settling(self) -> float:
        """Seconds that a wider call now would add to the calls after it.

        Consecutive wider calls pay this once, so each call is charged a share.
        """
        return self.costs.settling * (1 - self._stays) if self._singles else 0.0

    def describe(self) -> str:
        """Return a one-line description of the schedule."""
        how = ", and made ahead during calls" if self.ahead else ""
        return f"planned round by round{how}"

    @property
    def to_lose(self) -> float:
        """Seconds that may be lost on exploration now."""
        return max(0.0, BUDGET * self._busy - self._lost)

    def _mark(self) -> None:
        """Measure the time of a round outside of its calls."""
        now = self._clock()
        if self._began is not None:
            own = now - self._began - self._called
            if 0 < own < _PAUSE:
                self._overhead += _LATELY * (own - self._overhead)
        self._began, self._called = now, 0.0

    def _times(
        self, depth: int, allowed: Allowed, size: int, path: Path
    ) -> list[float]:
        """Seconds of a round by width, [size]; inf where it may not be used.

        They include what a rejection of the draft is expected to cost later.
        """
        single, *wider = self.rollback.times(depth, size)
        more = self._overhead + self._settling
        times = [single + self._overhead, *(seconds + more for seconds in wider)]
        if self.rollback.applies:
            lost = self.rollback.rejected(depth, path, len(times))
            times = [now + later for now, later in zip(times, lost, strict=True)]
        return times if allowed is EVERY else permitted(times, allowed)

    def _shares(self, times: list[float]) -> list[float]:
        """Seconds of a joint call for each of its requests, [WIDEST] by its width."""
        shares = shared_times(times, self._together)
        return shares if shares[0] < math.inf else times

    def _least(self, depth: int) -> float:
        """Probability below which the first token of a copy cannot pay.

        It is not used where a neural drafter is asked: there even an unlikely copy is
        evidence about the drafted tokens.
        """
        least = self.costs.least_more(depth)
        if self._singles:  # only a share of the settling is charged
            full = self.costs.least_more(depth, settles=True)
            least += (1 - self._stays) * (full - least)
        return least

    def _try(self, path: Path, depth: int, allowed: Allowed, choice: Choice) -> Choice:
        """A rarely tried width, if it may be better and the budget allows it."""
        most, is_young = 1 + len(path), self.costs.is_young
        young = [n for n in TRYING if n <= most and is_young(n) and allowed[n - 1]]
        if not young:
            return choice
        times = self._times(depth, allowed, WIDEST, path)
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
        """Expected loss in seconds of a round of an untried width, at worst."""
        known = max(n for n in range(1, width + 1) if times[n - 1] < math.inf)
        worst = times[known - 1] * width / known
        ends = [1.0, *path[: width - 1], 0.0]  # [n] probability that n tokens are right
        return sum(
            (ends[n - 1] - ends[n]) * max(0.0, worst - n * times[0])
            for n in range(1, width + 1)
        )

    def _write(self, inputs: RoundInputs, chosen: Sequence[NeuralSource]) -> Gathered:
        """A draft by the neural drafters, the best first, and a copied tail."""
        context, depth, made = inputs.context, len(inputs.context), inputs.made
        written, worth, waits = PartialDraft(), 0.0, False
        if made and made.source is chosen[0]:
            written = made.draft
        ahead, noted = len(written.tokens), False
        if self.ahead and self.ahead.source is chosen[0]:
            worth = self.ahead.worth(chosen[0])
            # A long text that it has not read yet it reads during the call.
            longest = float(inputs.times[0])
            waits = not self._trying and chosen[0].backlog_cost(context)[1] > longest
        self._reads = waits
        self._invested = 0.0 if waits else chosen[0].backlog_cost(context)[1]
        grows = self._may_grow(depth)
        for source in chosen:
            if written.tokens and written.tokens[-1] in self._ends:
                break
            extend(
                written,
                source,
                inputs,
                tries=self._trying,
                waits=waits and source is chosen[0],
                worth=worth,
                branches=grows,
                ends=self._ends,
            )
            if written.tokens and not noted:
                noted = True
                evidence = source.evidence(written, inputs.copy, 0)
                self.ledger.note(context, written.tokens, evidence, source)
        self._assumed = len(written.tokens)
        draft, path = written.chain(), written.path.copy()
        if len(draft) and int(draft.tokens[-1]) not in self._ends:
            here = context.with_tail(draft.tokens)
            tail = self._copied(here, inputs.most - len(draft))
            self._assumed += likely(tail.path)
            draft = draft.then(tail.draft())
            path += [written.certainty * chance for chance in tail.path]
        times, tree = inputs.times.tolist(), None
        if grows and not self._trying:
            grow = self._growing(context, draft, path, inputs.most)
            asked = written, context, inputs.choose, times, self._ends
            reads_later = waits and not written.tokens
            tree = grow({}) if reads_later else deepened(grow, chosen[0], *asked)
        self._writing = written.seconds
        spent = [seconds + written.seconds for seconds in times]
        choice = best_width(path, spent)
        if tree:
            tree, choice = self._better(tree, spent, choice)
        if tree:
            draft, path = tree
        if self._trying and choice.width == 1 and times[1] < math.inf:
            choice = Choice(2, choice.rate)
        plan = self._plan(path, times, choice)
        clipped = draft.clip(choice.width - 1)
        return Gathered(clipped, draft.sources, plan, min(ahead, len(clipped)))

    def _idle(self, depth: int, path: Path) -> Plan:
        """The plan of a round where no draft can pay, the most frequent case.

        It computes nothing else: the round may take only 4 ms.
        """
        plain = 1 / (self.costs.single(depth) + self._overhead)
        return Plan(path, plain, plain, [1], _HOPELESS if path else _NOTHING)

    def _plan(self, path: Path, times: list[float], choice: Choice) -> Plan:
        reason = "best expected throughput"
        if self._trying:
            reason = "tried, because its cost or acceptance is uncertain"
        elif not path:
            reason = _NOTHING
        elif choice.width == 1:
            reason = _HOPELESS
        seen = enumerate(times[: len(path) + 1], 1)
        known = [n for n, seconds in seen if seconds < math.inf]
        return Plan(path[:LOOKED_AT], choice.rate, 1 / times[0], known, reason)
