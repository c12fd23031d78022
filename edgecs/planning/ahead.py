"""Drafts that are made ahead: a drafter goes on while the target verifies.

The drafter assumes the likeliest outcome of the round: that its own part of the draft
is right, with the tokens of a copy after it that are likely, and that the target then
chooses the token which the drafter would write next. It drafts from there, on another
device or on cores of its own. If the context that it assumed is exactly the committed
one, the next round begins with these tokens; else they are dropped. With an empty draft
this is PEARL's pre-verify, with a full one its post-verify (arXiv 2408.11850);
DuoDecoding (arXiv 2503.00784) has a drafter on the CPU and a target on the GPU.

A draft made ahead is only a draft: the target verifies it like any other.

The drafter works in a thread, and only during calls of the target. The call's thread
waits for the step under way before it goes on, so nothing is used by two threads at
once.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Sequence
from functools import partial
from time import perf_counter
from typing import NamedTuple

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Choose, Draft, works_alone
from edgecs.costs.overlap import FAR, NEVER, Overlapped, overlapped
from edgecs.decoding.cascade import Cascade
from edgecs.decoding.static_schedule import Clock
from edgecs.planning.neural_source import NeuralSource
from edgecs.planning.review_schedule import PartialDraft
from edgecs.planning.worker import Worker, WorkerThread

# chosen: a draft that is wrong that often saves less than its energy costs.
_NEGLIGIBLE = 0.05  # probability of a draft below which no more tokens are written
# chosen: about the last 20 calls count.
_SLOWING = 0.05  # weight of a call in the slowdown of calls
_MOST_SLOWING = 4.0  # chosen: limit of one observation
# chosen: half of the slowdown is forgotten after 69 rounds, then it is tried again.
_FORGIVES = 0.99  # decay of the slowdown per round in which the drafter does not work
# chosen: a prompt that takes ten calls to read then costs a third of their speed.
_SOON = 32  # tokens that an answer is expected to have at least
# chosen: the rate hardly changes in between.
_LOOKS = 16  # rounds between two computations of an outlook
_DIFFERS = 0.03  # chosen: change of a share of right tokens with which it is computed
_UNKNOWN = 0, -1.0, NEVER


def likely(path: Sequence[float]) -> int:
    """How many first tokens of a copy are more likely right than not.

    >>> likely([0.9, 0.6, 0.4])
    2
    """
    return sum(chance >= 0.5 for chance in path)


class Made(NamedTuple):
    """A draft made ahead.

    start: tokens of the context before it. draft: the assumed outcome and what follows.
    """

    source: NeuralSource
    root: Context
    start: int
    draft: PartialDraft


class Resumed(NamedTuple):
    """What is left of a draft made ahead whose assumption held."""

    source: NeuralSource
    draft: PartialDraft


class Ahead:
    """Lets a neural drafter work during the calls of its target.

    ends: end-of-generation tokens. worker: None: a thread. clock: returns seconds.
    source: the drafter that goes on during the next call, if any; set by the planner.
    worked: whether it did during the last one. waited: seconds for which the end of its
    last step was waited for.
    """

    def __init__(
        self,
        ends: Container[int] = (),
        *,
        worker: Worker | None = None,
        clock: Clock = perf_counter,
    ) -> None:
        self.source: NeuralSource | None = None
        self.worked = False
        self.waited = 0.0
        self.slowdown = 1.0  # of the target's calls while the drafter works
        self._ends, self._clock = ends, clock
        self._worker: Worker = worker or WorkerThread()
        self._running: Made | None = None
        self._off = False  # whether no thread can be started
        self._base = 0  # tokens of the draft that is being verified
        self._left = 0  # steps
        self._made: Made | None = None
        self._outlooks: dict[str, tuple[int, float, Overlapped]] = {}
        self._cancels: list[tuple[Cascade, threading.Event | None]] = []

    def begin(self) -> None:
        """Start a new answer: drop what was made for the last one."""
        self._made = self.source = None
        self.worked, self.waited = False, 0.0
        self._outlooks.clear()

    def next_round(self) -> None:
        """Start a round: nothing has worked in it yet."""
        self.source, self.worked, self.waited = None, False, 0.0

    @staticmethod
    def suits(source: NeuralSource) -> bool:
        """Whether a drafter can work without its target.

        A head cannot: it needs the states that the target computes in that call.
        """
        return works_alone(source.cascade.reviewer)

    def offer(
        self,
        source: NeuralSource,
        context: Context,
        times: Sequence[float],
        least: float,
        arrears: float,
        said: int,
    ) -> float:
        """Expected rate of a drafter that works ahead; 0 if it is not above `least`.

        The first drafter for which it is goes on during the next call. times: seconds
        of the target's calls by width. arrears: seconds of what the drafter has not
        read, which it reads during calls as far as they last. said: tokens of the
        answer, which is expected to continue as long.
        """
        if self._off or not (self.suits(source) and source.costs.known):
            return 0.0
        rate = self._outlook(source, len(context), times).rate
        waits = max(0.0, arrears - times[0]) / max(_SOON, said)
        rate /= 1 + rate * waits
        if rate <= least:
            self.slowdown = 1 + _FORGIVES * (self.slowdown - 1)
            return 0.0
        self.source = self.source or source
        return rate

    def _outlook(
        self, source: NeuralSource, depth: int, times: Sequence[float]
    ) -> Overlapped:
        """What working ahead is expected to give, with the slowdown of calls."""
        right = source.acceptance_rate
        age, then, known = self._outlooks.get(source.name, _UNKNOWN)
        if age % _LOOKS == 0 or abs(right - then) > _DIFFERS:
            then = right
            slower = [seconds * self.slowdown for seconds in times[: FAR + 1]]
            step = source.review.times(depth)[0]
            known = overlapped(right, slower, step)
        self._outlooks[source.name] = age + 1, then, known
        return known

    def worth(self, source: NeuralSource) -> float:
        """Tokens that a draft made ahead by a drafter is worth."""
        return self._outlooks.get(source.name, _UNKNOWN)[2].worth

    def start(
        self, context: Context, draft: Draft, choose: Choose, most: int, seconds: float
    ) -> bool:
        """Let `source` go on after a chain; returns whether it does.

        draft: the part of the round's draft that is assumed to be right. most: tokens
        after it and the next one. seconds: of the call.
        """
        source, tokens = self.source, draft.tokens.tolist()
        if source is None or most < 1 or self._is_over(tokens):
            return False
        if not source.has_room(len(context) + len(tokens) + 1):
            return False
        written = PartialDraft(
            tokens,
            list(draft.sources),
            draft.confidences.tolist(),
            [1.0] * len(tokens),
        )
        step = source.review.times(len(context))[0] if source.costs.known else 0.0
        during = int(seconds / step) if step > 0 else 1
        self._left = max(self._outlooks[source.name][2].steps, min(during, FAR + 1))
        self._base = len(tokens)
        made = self._running = Made(source, context.root, len(context), written)
        # What ends the answer also ends the target's call, and then this work.
        self._cancels = [(level, level.cancel) for level in source.cascade.levels()]
        for level, _ in self._cancels:
            level.cancel = self._worker.stopping
        step_on = partial(self._step, made, context, choose, len(tokens) + 1 + most)
        try:
            self._worker.start(step_on)
        except RuntimeError:  # no thread can be started
            self._restore()
            self._running, self._off = None, True
            return False
        self.worked = True
        return True

    def _step(self, made: Made, context: Context, choose: Choose, most: int) -> bool:
        """One step of the drafter, in the worker's thread. most: tokens in total."""
        source, draft = made.source, made.draft
        source.write(draft, context, choose, most, NOTHING)
        self._left -= 1
        return (
            self._left > 0
            and len(draft.tokens) < most
            and not self._is_over(draft.tokens)
            and draft.certainty >= _NEGLIGIBLE
            and source.has_room(made.start + len(draft.tokens))
        )

    def _is_over(self, tokens: Sequence[int]) -> bool:
        return bool(tokens) and tokens[-1] in self._ends

    def finish(self) -> int:
        """Wait for the step under way; returns the tokens made after the assumed ones.

        Raises what the drafter raised, without the tokens of that draft.
        """
        running, self._running = self._running, None
        if running is None:
            return 0
        began = self._clock()
        try:
            self._worker.finish()
        finally:
            self._restore()
            self.waited = self._clock() - began
        self._made = running
        return max(0, len(running.draft.tokens) - self._base - 1)

    def _restore(self) -> None:
        for level, cancel in self._cancels:
            level.cancel = cancel
        self._cancels = []

    def take(self, context: Context, most: int, copy: Draft) -> Resumed | None:
        """The rest of the last draft made ahead, if what it assumed was committed.

        most: its tokens at most, 1 or more. copy: Max-Gram's proposal here.
        """
        made, self._made = self._made, None
        if made is None or made.root is not context.root:
            return None
        said = context.tokens[made.start :].tolist()
        rest = len(said)
        draft = made.draft
        if not rest or said != draft.tokens[:rest] or rest == len(draft.tokens):
            return None
        left = slice(rest, rest + most)
        resumed = made.source.resumed(
            draft.tokens[left], draft.sources[left], draft.confidences[left], copy
        )
        return Resumed(made.source, resumed)

    def observe(self, ratio: float) -> None:
        """Learn from a call during which the drafter worked.

        ratio: its time to that of the same call without a drafter.
        """
        ratio = min(ratio, _MOST_SLOWING)
        self.slowdown = max(1.0, self.slowdown + _SLOWING * (ratio - self.slowdown))

    def park(self, name: str) -> None:
        """Stop using a drafter that failed."""
        if self._made is not None and self._made.source.name == name:
            self._made = None
        if self.source is not None and self.source.name == name:
            self.source = None

    def close(self) -> None:
        """End the thread; may be called again."""
        self._worker.close()
