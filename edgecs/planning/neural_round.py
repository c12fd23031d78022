"""The part of neural drafters in a round: which of them draft, and what they write."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Context
from edgecs.core.draft import Choose, Draft
from edgecs.costs.cost_model import Choice, best_width
from edgecs.planning.ahead import Ahead, Resumed
from edgecs.planning.neural_source import NeuralSource
from edgecs.planning.review_schedule import PartialDraft

# chosen: in every round they took 5 % of a token of 5 ms (head, SmolLM2 Q4_1).
_RESTS = 8  # rounds until drafters expected to be slower than plain decoding are asked
# chosen: an answer that ends then is at most a tenth slower.
_FELT = 0.1  # share of the answer so far that trying a parked drafter may take


class RoundInputs(NamedTuple):
    """Inputs of a round."""

    context: Context
    choose: Choose
    most: int  # draft tokens at most
    times: NDArray[np.float64]  # [WIDEST] seconds of a round by width
    copy: Draft  # proposal of a source
    choice: Choice  # the best width for that proposal alone
    said: int  # tokens of the answer so far
    together: int  # requests of the next call
    ahead: Ahead | None = None  # lets a drafter go on during the call
    made: Resumed | None = None  # a draft made ahead


class Chosen(NamedTuple):
    """The neural drafters of a round, the best first; often none."""

    sources: tuple[NeuralSource, ...] = ()
    tries: bool = False  # whether a parked one is tried


class NeuralChoice:
    """Which neural drafters are used in a round.

    neural: all of them, the best first.
    """

    def __init__(self, neural: Sequence[NeuralSource]) -> None:
        self._sound = tuple(neural)  # those that have not failed
        self._rest = 0  # rounds for which none is asked

    def begin(self) -> None:
        """Start a new answer."""
        self._rest = 0

    def park(self, name: str) -> None:
        """Stop using a drafter that failed."""
        self._sound = tuple(source for source in self._sound if source.name != name)

    def asks(self) -> bool:
        """Whether neural drafters are considered in this round."""
        if not self._sound:
            return False
        if not self._rest:
            return True
        self._rest -= 1
        for source in self._sound:
            source.passed()
        return False

    def chosen(
        self, inputs: RoundInputs, margin: float, hoped: float, to_lose: float
    ) -> Chosen:
        """The drafters that are expected to beat the copy, or one to be tried.

        margin: relative gain over the copy that they must be expected to have. hoped:
        the same over plain decoding, for being asked in the next round. to_lose:
        seconds that may be lost on trying one.
        """
        better = inputs.choice.rate * (1 + margin)
        chosen: tuple[NeuralSource, ...] = ()
        # A drafter expected to be slower than plain decoding needs a try, not asking.
        hopes = (1 + hoped) / float(inputs.times[0])
        self._rest = _RESTS
        for i, source in enumerate(self._sound):
            if not (source.known and source.can_draft(inputs.context)):
                continue
            best = self._rate(source, inputs, hopes)
            if best > hopes:
                self._rest = 0
            if best > better:
                better, chosen = best, self._sound[i:]
        rate = better if chosen else inputs.choice.rate
        for i, source in enumerate(self._sound):
            if source in chosen:
                source.tried(paid=True)
                source.parked = None
                continue
            source.parked = len(inputs.context), inputs.times, rate
            if source.may_be_tried() and _affordable(source, inputs, to_lose):
                source.tried(paid=False)
                return Chosen(self._sound[i : i + 1], tries=True)
        return Chosen(chosen)

    def _rate(self, source: NeuralSource, inputs: RoundInputs, hopes: float) -> float:
        """Expected tokens per second with a drafter, working ahead or not."""
        depth = len(inputs.context)
        # The rest of an answer is expected to be as long as the answer so far.
        more, arrears = source.backlog_cost(inputs.context)
        each = arrears / max(1, inputs.said)
        rates = source.expected_rates(depth, inputs.times, more, each)
        best = float(rates[: inputs.most].max(initial=0))
        return max(best, self._rate_ahead(source, inputs, max(best, hopes), arrears))

    def _rate_ahead(
        self, source: NeuralSource, inputs: RoundInputs, least: float, arrears: float
    ) -> float:
        """Expected rate of a drafter that works ahead, or of its draft made ahead.

        least: as in `Ahead.offer`. arrears: seconds of what it has not read.
        """
        ahead, made = inputs.ahead, inputs.made
        if ahead is None:
            return 0.0
        times = list(map(float, inputs.times))
        best = 0.0
        if made and made.source is source:
            best = best_width(made.draft.path, times).rate
        if inputs.together > 1:
            return best
        offered = ahead.offer(
            source, inputs.context, times, least, arrears, inputs.said
        )
        return max(best, offered)


def _affordable(source: NeuralSource, inputs: RoundInputs, to_lose: float) -> bool:
    """Whether trying a parked drafter for a token or two fits the budget."""
    if not source.can_draft(inputs.context):
        return False
    single = float(inputs.times[0])
    step = float(source.costs.seconds(0)[0]) if source.costs.known else single
    reads = sum(source.backlog_cost(inputs.context))
    # It must also be a small share of this answer, which may be a short one.
    here = _FELT * single * inputs.said
    return step + reads + single <= min(to_lose, here)


def extend(
    written: PartialDraft,
    source: NeuralSource,
    inputs: RoundInputs,
    *,
    tries: bool,
    waits: bool,
    worth: float,
    branches: bool,
    ends: Container[int],
) -> None:
    """Let a drafter write while each token raises the expected speed of the round.

    tries: it writes at least one token. waits: it writes nothing else. worth: see
    `NeuralSource.should_extend`. branches: append siblings too, for a tree.
    """
    context, most = inputs.context, inputs.most
    while len(written.tokens) < most and (
        tries
        or (
            not waits
            and source.should_extend(written, inputs.times, len(context), worth)
        )
    ):
        tries = False
        source.write(
            written, context, inputs.choose, most, inputs.copy, branches=branches
        )
        if written.tokens[-1] in ends:
            break
