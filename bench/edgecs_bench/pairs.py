"""Pairs of answers to one prompt: plain and with the planner, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import psutil

from edgecs.cascade import NamedModel
from edgecs.choice import Rule
from edgecs.context import Context
from edgecs.draft import Choose, Draft, Drafter, LanguageModel, Rows
from edgecs.exactness import EVERY, Allowed, Limits
from edgecs.load import Loaded, LoadedDrafter
from edgecs.maxgram import MaxGram
from edgecs.schedule import Gathered, Outcome, Schedule
from edgecs.session import Session
from edgecs.speculation import Speculation
from edgecs.stats import Stats
from edgecs_bench.identity import fork
from edgecs_bench.loops import looping
from edgecs_bench.plain_llama import PlainLlama
from edgecs_bench.speedups import Pair, Timed

_WARM = 16  # tokens of an answer that is not timed


class Others:
    """How much of the processors' time others have used since it was made."""

    def __init__(self) -> None:
        self._before = self._seconds()

    @property
    def share(self) -> float:
        """Between 0 and 1; where it is not near 0 speeds mean nothing."""
        pairs = zip(self._seconds(), self._before, strict=True)
        others, everything = (now - before for now, before in pairs)
        return max(0.0, others / everything) if everything else 0.0

    @staticmethod
    def _seconds() -> tuple[float, float]:
        """Of other programs, and all there were, idle ones too."""
        machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        return sum(machine) - idle - own.user - own.system, sum(machine)


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


@dataclass(frozen=True)
class Bench:
    """Everything that answers."""

    loaded: Loaded
    drafters: Sequence[LoadedDrafter]
    speculation: Speculation
    llama: PlainLlama | None
    calls: Calls  # of the drafters
    rule: Rule
    most: int  # tokens of an answer

    def warm_up(self, ids: list[int]) -> None:
        """Touches what the first answers would have to wait for."""
        self.loaded.target.reset()
        with self.loaded.session([], 0, rule=self.rule) as session:
            for _ in session.generate(ids, max_tokens=_WARM):
                pass
        if self.llama:
            self.llama.answer(ids, _WARM)

    def pair(self, ids: list[int], plain_first: bool, with_llama: bool) -> Pair:
        """Both answers to a prompt, llama.cpp's own next to the plain one."""
        llama = self._llama(ids) if with_llama and plain_first else None
        if plain_first:
            said, plain = self._plain(ids)
            found, stats, own = self._speculative(ids)
        else:
            found, stats, own = self._speculative(ids)
            said, plain = self._plain(ids)
            llama = self._llama(ids) if with_llama else None
        forked: dict[str, Any] | None = None
        if found != said:
            forked = fork({"prompt_tokens": ids}, found, said, stats)
            del forked["id"]
        return Pair(
            plain_first=plain_first,
            plain=_timed(said, plain.decode_seconds),
            speculative=_timed(found, stats.decode_seconds),
            llama=llama,
            rounds=stats.rounds,
            tested=stats.tested,
            accepted=stats.accepted,
            tiers=tiers(stats, self.speculation.limits),
            compared=forked["token"] + 1 if forked else len(found),
            fork=forked,
            planner_us=round(1e6 * median(own), 2) if own else None,
        )

    def _plain(self, ids: list[int]) -> tuple[list[int], Stats]:
        self.loaded.target.reset()
        with self.loaded.session([], 0, rule=self.rule) as session:
            return self._said(session, ids), session.stats

    def _speculative(self, ids: list[int]) -> tuple[list[int], Stats, list[float]]:
        """With the seconds of the planner in every round."""
        self.loaded.target.reset()
        for drafter in self.drafters:
            drafter.model.reset()
        planner = self.speculation.planner(
            [NamedModel(drafter.name, drafter.model) for drafter in self.drafters],
            MaxGram(),
            longest=self.loaded.target.max_draft,
            fingerprints={d.name: d.fingerprint for d in self.drafters},
            ends=self.loaded.model.vocabulary.ends,
        )
        watched = Watched(planner, self.calls)
        limits = self.speculation.limits
        with self.loaded.session(
            schedule=watched, limits=limits, rule=self.rule
        ) as session:
            said = self._said(session, ids)
        self.speculation.save()  # the next planner finds the drafters' times there
        return said, session.stats, watched.spans

    def _said(self, session: Session, ids: list[int]) -> list[int]:
        return [token.id for token in session.generate(ids, max_tokens=self.most)]

    def _llama(self, ids: list[int]) -> Timed | None:
        if self.llama is None:
            return None
        return _timed(*self.llama.answer(ids, self.most))


def _timed(said: list[int], seconds: float) -> Timed:
    return Timed(round(seconds, 6), len(said), int(looping(said).sum()))


def tiers(stats: Stats, limits: Limits) -> dict[str, int]:
    """Tokens of an answer by the tier of their round; the first token has no round."""
    found: Counter[str] = Counter()
    depth, left = stats.prompt_tokens + 1, stats.tokens - 1
    for record in stats.records:
        size = min(len(record.accepted) + 1, left)
        found[limits.tier(depth - 1)] += size  # cells before the call
        depth, left = depth + size, left - size
    return dict(found)
