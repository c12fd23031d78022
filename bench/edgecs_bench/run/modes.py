"""The modes of a bench: ways to answer a prompt that are compared.

    plain        decoding without drafts
    again        plain decoding again, which shows the error of the bench itself
    llama        llama.cpp's own loop, without edgecs; greedy only
    planner      all drafters, chosen in every round
    mag:K        Max-Gram alone, K tokens in every round
    NAME:K       the drafter NAME alone, K tokens in every round
    k:ROWS       a fixed cascade, as in --k-matrix

Every answer starts with an empty cache and with drafters that have seen no earlier
prompt; the planner keeps the times and acceptances that it has learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple, Protocol

import click

from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.core.context import Context
from edgecs.core.draft import Drafter
from edgecs.core.faults import refuse
from edgecs.decoding.cascade import Cascade, Round, stack
from edgecs.decoding.exactness import Limits
from edgecs.decoding.kmatrix import KMatrix
from edgecs.decoding.static_schedule import Schedule, StaticSchedule
from edgecs.drafters.maxgram import MaxGram
from edgecs.runtime.loader import Loaded, LoadedDrafter
from edgecs.sampling.chain import Rule
from edgecs_bench.run.answers import Moment, Said
from edgecs_bench.run.instrument import Calls, Watched
from edgecs_bench.run.plain_llama import PlainLlama

PLAIN, AGAIN, LLAMA, PLANNER, MAG = "plain", "again", "llama", "planner", "mag"
DRAFTED = 3  # default draft length, that of llama.cpp


class Asked(NamedTuple):
    """A prompt with its settings."""

    ids: list[int]  # of the prompt, including the chat template
    text: str  # the same as text
    rule: Rule  # the sampling rule
    most: int  # tokens of the answer


class Mode(Protocol):
    """One way to answer."""

    @property
    def name(self) -> str:
        """The name of the mode."""

    @property
    def about(self) -> str:
        """A description of the mode."""

    @property
    def greedy_only(self) -> bool:
        """Whether the mode cannot sample."""

    @property
    def version(self) -> str | None:
        """The version of another runtime."""

    @property
    def pid(self) -> int | None:
        """The id of its process; None: this one."""

    def answer(self, asked: Asked) -> Said:
        """Answers from an empty cache. Raises ModeFailed."""


class Drafting(NamedTuple):
    """The schedule of one answer, and the allowed widths."""

    schedule: Schedule
    limits: Limits


@dataclass(frozen=True)
class EdgecsMode:
    """A mode of edgecs itself.

    drafting: creates the schedule of an answer; None: no drafts. calls: of the
    drafters. done: called after every answer.
    """

    name: str
    about: str
    loaded: Loaded
    drafters: Sequence[LoadedDrafter] = ()
    drafting: Callable[[], Drafting] | None = None
    calls: Calls | None = None
    done: Callable[[], object] = lambda: None
    greedy_only: bool = False
    version: str | None = None
    pid: int | None = None

    def answer(self, asked: Asked) -> Said:
        """Answers from an empty cache."""
        self.loaded.target.reset()
        for drafter in self.drafters:
            drafter.model.reset()
        if self.drafting is None:
            return self._run(asked, None)
        said = self._run(asked, self.drafting())
        self.done()
        return said

    def _run(self, asked: Asked, drafting: Drafting | None) -> Said:
        watched = limits = None
        if drafting:
            watched = Watched(drafting.schedule, self.calls or Calls(()))
            limits = drafting.limits
        moments: list[Moment] = []
        started = [0.0]

        def note(context: Context, done: Round) -> None:
            parked = bool(done.proposed) and not len(done.draft)
            emitted, width = len(done.verdict.path) + 1, 1 + len(done.draft)
            at = perf_counter() - started[0]
            moments.append(
                Moment(at, emitted, width, parked, done.drafting, done.calling)
            )

        with self.loaded.session(
            schedule=watched or StaticSchedule(), limits=limits, rule=asked.rule
        ) as session:
            session.on_round = note
            pieces = []
            for token in session.generate(asked.ids, max_tokens=asked.most):
                started[0] = started[0] or perf_counter()
                pieces.append(token)
            stats = session.stats
            refuse(stats.faults)
        return Said(
            [token.id for token in pieces],
            stats.prompt_seconds,
            stats.decode_seconds,
            stats,
            limits if drafting else Limits(),
            pieces,
            moments,
            watched.spans if watched else [],
        )


@dataclass(frozen=True)
class LlamaLoopMode:
    """llama.cpp's own loop over the same weights."""

    llama: PlainLlama
    name: str = LLAMA
    about: str = "llama.cpp's own loop, without edgecs"
    greedy_only: bool = True
    version: str | None = None
    pid: int | None = None

    def answer(self, asked: Asked) -> Said:
        """Answers from an empty cache."""
        tokens, ttft, decode = self.llama.answer(asked.ids, asked.most)
        return Said(tokens, ttft, decode, tested=0, accepted=0)


@dataclass(frozen=True)
class ModeFactory:
    """Creates modes."""

    loaded: Loaded
    drafters: Sequence[LoadedDrafter]
    speculation: SpeculationProfile
    llama: PlainLlama | None
    calls: Calls  # of the drafters

    def make(self, name: str) -> Mode:
        """The mode of a name, see the module. Raises click.UsageError."""
        if name in (PLAIN, AGAIN):
            return EdgecsMode(name, "decoding without drafts", self.loaded)
        if name == LLAMA:
            return self._alone()
        if name == PLANNER:
            return self._planned()
        if name.startswith("k:"):
            return self._fixed(name, *self._matrix(name))
        who, _, count = name.rpartition(":")
        who, count = (who, count) if who else (count, str(DRAFTED))
        if not (count.isascii() and count.isdigit() and 0 < int(count) < 10_000):
            raise click.UsageError(
                f"invalid mode {name!r}: {count!r} is not a number of tokens, 1 or more"
            )
        return self._fixed(f"{who}:{count}", lambda: [self._drafter(who)], [int(count)])

    def defaults(self) -> list[str]:
        """The names of the default modes."""
        drafters = [f"{drafter.name}:{DRAFTED}" for drafter in self.drafters]
        return [PLAIN, f"{MAG}:{DRAFTED}", *drafters, PLANNER]

    def _alone(self) -> Mode:
        if self.llama is None:
            raise click.UsageError(
                "not enough memory for a second context: leave the mode llama out, or "
                "give a smaller context (-c)"
            )
        return LlamaLoopMode(self.llama)

    def _planned(self) -> Mode:
        names = [*(drafter.name for drafter in self.drafters), MAG]

        def drafting() -> Drafting:
            planner = self.speculation.planner(
                [d.named for d in self.drafters],
                longest=self.loaded.target.max_draft,
                fingerprints={d.name: d.fingerprint for d in self.drafters},
                ends=self._ends,
            )
            return Drafting(planner, self.speculation.limits)

        return self._own(PLANNER, f"target <- {' <- '.join(names)}, planned", drafting)

    def _fixed(
        self,
        name: str,
        make: Callable[[], Sequence[Drafter]],
        counts: Sequence[int],
    ) -> Mode:
        longest = sum(counts)
        if longest > self.loaded.target.max_draft:
            raise click.UsageError(
                f"{name!r} drafts {longest} tokens, but one call can verify at most "
                f"{self.loaded.target.max_draft}"
            )
        chain = " <- ".join(["target", *(drafter.name for drafter in make())])

        def drafting() -> Drafting:
            schedule = StaticSchedule(make(), counts, self._ends)
            return Drafting(schedule, self.speculation.fixed(1 + longest))

        about = f"{chain}, {', '.join(map(str, counts))} tokens in every round"
        return self._own(name, about, drafting)

    def _own(
        self, name: str, about: str, drafting: Callable[[], Drafting]
    ) -> EdgecsMode:
        return EdgecsMode(
            name,
            about,
            self.loaded,
            self.drafters,
            drafting,
            self.calls,
            self.speculation.save,  # so that the next planner has the drafters' times
        )

    @property
    def _ends(self) -> frozenset[int]:
        return self.loaded.model.vocabulary.ends

    def _drafter(self, who: str) -> Drafter:
        """Max-Gram or a model that drafts token by token."""
        if who == MAG:
            return MaxGram()
        for drafter in self.drafters:
            if drafter.name == who:
                alone = StaticSchedule((), (), self._ends)
                return Cascade(drafter.model, alone, ends=self._ends, name=who)
        own = (PLAIN, AGAIN, LLAMA, PLANNER, MAG)
        known = ", ".join([*own, *(drafter.name for drafter in self.drafters)])
        raise click.UsageError(
            f"unknown drafter {who!r}: a mode is one of {known}, or k:ROWS"
        )

    def _matrix(
        self, name: str
    ) -> tuple[Callable[[], Sequence[Drafter]], Sequence[int]]:
        """The drafters and counts of a K matrix. Raises ConfigError."""
        matrix = KMatrix.parse(name.removeprefix("k:"))
        matrix.check([*(drafter.name for drafter in self.drafters), MAG])
        models = [d.named for d in self.drafters]

        def make() -> Sequence[Drafter]:
            return stack(models, MaxGram(), matrix, ends=self._ends)

        return make, matrix.counts(0)
