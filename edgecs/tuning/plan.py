"""The steps of a tuning, planned in advance, and an estimate of the remaining time.

Work is counted in calls of one token. The work of each step is estimated, and the time
of a call is learned from the completed steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

from edgecs.calibrate.probe import FULL, QUICK, points
from edgecs.costs.cost_model import SETTLED, WIDEST
from edgecs.decoding.static_schedule import Clock
from edgecs.tuning.comparison import PLAIN, Chain, playing
from edgecs.tuning.cost_sweep import ANCHORS, DEEPEST, FRAME, REVIEWS, places
from edgecs.tuning.settings import DEPTHS, WIDTHS, Setting, trying

ANSWERING = "asking for plain answers"
ROOM = WIDEST + 2  # tokens after DEEPEST that the comparison of bits uses
# chosen, all five: estimates, which only affect the remaining time shown.
_WIDER = 0.25  # work of one token more in a call
_SMALL = 0.3  # work of a drafter's call of one token
_AGAIN = 1.3  # average runs of a chain, as some are repeated
_FIRST = 200.0  # weight, as work, of the initial time of a call
_NEARLY = 0.95  # most of a step that counts as done before the next one begins


class Effort(NamedTuple):
    """The amount of measurements."""

    repeats: int = 7  # calls of every width; half as many deeper in the context
    tokens: int = 96  # most tokens in an answer of a compared chain
    widths: Sequence[int] = FULL  # widths whose bits are compared

    @property
    def deeper(self) -> int:
        """Calls of every width where only a few widths are timed."""
        return max(1, self.repeats // 2)


QUICK_EFFORT = Effort(3, 48, QUICK)


class Step(NamedTuple):
    """The progress message of a step, and its work in calls of one token."""

    text: str
    work: float


def timing(depth: int, widths: Sequence[int]) -> str:
    """Progress message of a curve of the target."""
    return f"timing {len(widths)} widths after {depth} tokens"


def timing_drafter(name: str) -> str:
    """Progress message of the curve of a drafter."""
    return f"timing {name}"


def comparing(depth: int) -> str:
    """Progress message of a comparison of bits."""
    return f"comparing bits after {depth} tokens"


def planned_steps(
    n_ctx: int,
    effort: Effort,
    drafters: Sequence[str],
    tried: Sequence[Chain],
    kinds: Sequence[str],
) -> Iterator[Step]:
    """The steps of `tune`, which may skip some. kinds: of prompts."""
    first, *deeper = places(n_ctx)
    yield Step(timing(*first), _sweep(first[1], effort.repeats))
    for depth, widths in deeper:
        yield Step(timing(depth, widths), _sweep(widths, effort.deeper))
    for depth, _ in points(min(n_ctx, DEEPEST + ROOM)):
        yield Step(comparing(depth), max(effort.widths) + _calls(effort.widths))
    for name in drafters:
        yield Step(timing_drafter(name), _SMALL * _sweep(REVIEWS, effort.repeats))
    agreeing = _SMALL * len(drafters)
    yield Step(ANSWERING, len(kinds) * effort.tokens * (1 + agreeing))
    for kind in kinds:
        yield Step(playing(kind, PLAIN), effort.tokens)
        for chain in tried:
            yield Step(playing(kind, chain), 2 * _AGAIN * effort.tokens)


def plan_settings(others: Iterable[Setting], repeats: int) -> Iterator[Step]:
    """The steps of `otherwise`."""
    rounds = 2 * len(DEPTHS) * (SETTLED + repeats)
    for other in others:
        yield Step(trying(other), rounds * _calls(WIDTHS))


def _calls(widths: Iterable[int]) -> float:
    """Work of one call of each width."""
    return sum(1 + _WIDER * (n - 1) for n in widths)


def _sweep(widths: Sequence[int], repeats: int) -> float:
    """Work of a curve."""
    frames = repeats * -(-len(widths) // FRAME)
    return repeats * _calls(widths) + (frames + 1) * ANCHORS


class Pace:
    """Progress of a plan, and its remaining time.

    single: seconds of a call of one token.

    >>> pace = Pace([Step("a", 10), Step("b", 30)], 0.5, clock=lambda: 0.0)
    >>> pace.begin("b")
    >>> pace.share, pace.left
    (0.25, 15.0)
    """

    def __init__(
        self, steps: Iterable[Step], single: float, *, clock: Clock = perf_counter
    ) -> None:
        self._steps, self._clock = list(steps), clock
        self._total = sum(step.work for step in self._steps)
        self._at, self._since = -1, clock()  # the current step, and when it began
        self._before = 0.0  # work of the steps before it
        self._worked, self._took = _FIRST, _FIRST * single  # of completed steps

    def begin(self, text: str) -> None:
        """Begin the step with this message; others belong to the current step."""
        later = range(self._at + 1, len(self._steps))
        at = next((i for i in later if self._steps[i].text == text), None)
        if at is None:
            return
        now = self._clock()
        if self._at >= 0:
            self._worked += self._steps[self._at].work
            self._took += now - self._since
        self._at, self._since = at, now
        self._before = sum(step.work for step in self._steps[:at])

    @property
    def share(self) -> float:
        """Share of the work that is done, 0 to 1."""
        _, done = self._inside()
        return (self._before + done) / self._total if self._total else 1.0

    @property
    def left(self) -> float:
        """Estimated remaining seconds; they grow while a step takes too long.

        The estimate therefore does not jump when the next step begins.
        """
        seconds, done = self._inside()
        unit = (self._took + seconds) / (self._worked + done)
        return unit * (self._total - self._before - done)

    def _inside(self) -> tuple[float, float]:
        """Seconds of the current step, and its work done at the usual rate."""
        unit = self._took / self._worked
        if self._at < 0 or not unit:
            return 0.0, 0.0
        seconds = self._clock() - self._since
        return seconds, min(seconds / unit, _NEARLY * self._steps[self._at].work)
