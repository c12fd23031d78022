"""Timing of drafters and schedules while answers are measured."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from edgecs.core.context import Context
from edgecs.core.draft import Choose, Drafter, LanguageModel, Request, Rows
from edgecs.decoding.exactness import EVERY, Allowed
from edgecs.decoding.static_schedule import Gathered, Outcome, Schedule


class Calls:
    """Seconds in the calls of some models since creation."""

    def __init__(self, models: Sequence[LanguageModel]) -> None:
        self.seconds = 0.0
        for model in models:
            self._time(model)

    def _time(self, model: LanguageModel) -> None:
        score = model.score

        def timed(requests: Sequence[Request]) -> list[Rows]:
            began = perf_counter()
            try:
                return score(requests)
            finally:
                self.seconds += perf_counter() - began

        model.score = timed  # type: ignore[method-assign]


class Watched:
    """A schedule that records its own time, without the calls of its drafters."""

    def __init__(self, schedule: Schedule, calls: Calls) -> None:
        self.spans: list[float] = []  # seconds, one for each round that could draft
        self._schedule = schedule
        self._calls = calls
        self._drafting: float | None = None

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        """The drafters."""
        return self._schedule.drafters

    def begin(self) -> None:
        """Starts an answer."""
        self._schedule.begin()

    def draft(
        self,
        context: Context,
        choose: Choose,
        most: int,
        allowed: Allowed = EVERY,
        together: int = 1,
    ) -> Gathered:
        """A draft."""
        began = perf_counter() - self._calls.seconds
        gathered = self._schedule.draft(context, choose, most, allowed, together)
        spent = perf_counter() - self._calls.seconds - began
        self._drafting = spent if most else None
        return gathered

    def learn(self, context: Context, outcome: Outcome) -> None:
        """Receives the result of a round."""
        began = perf_counter()
        self._schedule.learn(context, outcome)
        if self._drafting is not None:
            self.spans.append(self._drafting + perf_counter() - began)

    def park(self, name: str) -> None:
        """Parks a drafter that failed."""
        self._schedule.park(name)

    def describe(self) -> str:
        """Describes the schedule in one line."""
        return self._schedule.describe()
