"""What is watched while answers are timed: other programs, drafters, a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import psutil

from edgecs.context import Context
from edgecs.draft import Choose, Draft, Drafter, LanguageModel, Rows
from edgecs.exactness import EVERY, Allowed
from edgecs.schedule import Gathered, Outcome, Schedule

BUSY = 0.05  # share of the processors' time for others that makes speeds worthless


class Others:
    """How much of the processors' time others have used since it was made.

    pids: processes that are not others.
    """

    def __init__(self, pids: Sequence[int] = ()) -> None:
        self._own = [psutil.Process(), *(psutil.Process(pid) for pid in pids)]
        self._before = self._seconds()

    @property
    def share(self) -> float:
        """Between 0 and 1; where it is not near 0 speeds mean nothing."""
        pairs = zip(self._seconds(), self._before, strict=True)
        others, everything = (now - before for now, before in pairs)
        return max(0.0, others / everything) if everything else 0.0

    def _seconds(self) -> tuple[float, float]:
        """Of other programs, and all there were, idle ones too."""
        machine = psutil.cpu_times()
        own = sum(map(_used, self._own))
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        return sum(machine) - idle - own, sum(machine)


def _used(process: psutil.Process) -> float:
    """Seconds of the processors' time; 0 for a process that is gone."""
    try:
        return float(sum(process.cpu_times()[:2]))
    except psutil.Error:
        return 0.0


class Calls:
    """Seconds in the calls of some models since it was made."""

    def __init__(self, models: Sequence[LanguageModel]) -> None:
        self.seconds = 0.0
        for model in models:
            self._time(model)

    def _time(self, model: LanguageModel) -> None:
        score = model.score

        def timed(context: Context, draft: Draft) -> Rows:
            began = perf_counter()
            try:
                return score(context, draft)
            finally:
                self.seconds += perf_counter() - began

        model.score = timed  # type: ignore[method-assign]


class Watched:
    """A schedule whose own time is noted, the calls of its drafters left out."""

    def __init__(self, schedule: Schedule, calls: Calls) -> None:
        self.spans: list[float] = []  # seconds, one for each round that could draft
        self._schedule = schedule
        self._calls = calls
        self._drafting: float | None = None

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        """Who takes part."""
        return self._schedule.drafters

    def begin(self) -> None:
        """An answer begins."""
        self._schedule.begin()

    def draft(
        self, context: Context, choose: Choose, most: int, allowed: Allowed = EVERY
    ) -> Gathered:
        """A draft."""
        began = perf_counter() - self._calls.seconds
        gathered = self._schedule.draft(context, choose, most, allowed)
        spent = perf_counter() - self._calls.seconds - began
        self._drafting = spent if most else None
        return gathered

    def learn(self, context: Context, outcome: Outcome) -> None:
        """What came of it."""
        began = perf_counter()
        self._schedule.learn(context, outcome)
        if self._drafting is not None:
            self.spans.append(self._drafting + perf_counter() - began)

    def describe(self) -> str:
        """What it does."""
        return self._schedule.describe()
