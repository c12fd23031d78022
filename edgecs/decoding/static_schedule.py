"""Who drafts how much in a round: the schedule of a cascade.

`Quotas` is the paper's static schedule, one row of the K matrix. `planner.Planner`
decides anew in every round.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Choose, Draft, Drafter, Rows, Verdict
from edgecs.core.faults import blame
from edgecs.decoding.exactness import EVERY, Allowed
from edgecs.errors import ConfigError

Clock = Callable[[], float]
"""Seconds since some moment."""


class Plan(NamedTuple):
    """Why a round was drafted as it was; times in seconds."""

    probabilities: list[float]  # [token] that the draft is right up to it
    expected: float  # tokens a second that the round should bring
    plain: float  # tokens a second of plain decoding
    widths: list[int]  # that were considered
    reason: str  # in words


class Gathered(NamedTuple):
    """A draft on its way to the reviewer."""

    draft: Draft
    proposed: tuple[str, ...]  # who wrote each proposed token, before any clipping
    plan: Plan | None = None


class Outcome(NamedTuple):
    """What came of a draft, for the schedule to learn from."""

    draft: Draft
    rows: Rows
    verdict: Verdict
    drafting: float  # seconds until the draft was there
    calling: float  # seconds of the reviewer's call
    together: int = 1  # requests that this call had


class Schedule(Protocol):
    """Decides who drafts how much."""

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        """Who takes part, the best first."""

    def begin(self) -> None:
        """Told when an answer begins."""

    def draft(
        self, context: Context, choose: Choose, most: int, allowed: Allowed = EVERY
    ) -> Gathered:
        """A draft of at most `most` tokens.

        allowed: widths that the reviewer's call may have; a draft that does not give
        one of them is cut down to the next smaller one.
        """

    def learn(self, context: Context, outcome: Outcome) -> None:
        """Told once a round, before anything of it is committed."""

    def park(self, name: str) -> None:
        """Told that a drafter failed: it must not be asked again."""

    def describe(self) -> str:
        """What it does, in words."""


class Quotas:
    """Every drafter goes on until the quotas up to its own are written.

    counts: quota of each drafter a round, a row of the K matrix. ends:
    end-of-generation tokens, nothing follows them.
    """

    def __init__(
        self,
        drafters: Sequence[Drafter] = (),
        counts: Sequence[int] = (),
        ends: Container[int] = (),
    ) -> None:
        if len(drafters) != len(counts):
            raise ValueError(f"{len(drafters)} drafters but {len(counts)} counts")
        self._drafters = tuple(drafters)
        self.counts = tuple(counts)
        self._ends = ends
        self._turns = [*zip(self._drafters, accumulate(counts), strict=True)]

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        """Who takes part, the best first."""
        return self._drafters

    def begin(self) -> None:
        """Every round is the same."""

    def draft(
        self, context: Context, choose: Choose, most: int, allowed: Allowed = EVERY
    ) -> Gathered:
        """The drafters' tokens, the best drafter's first (horizontal cascade)."""
        draft = NOTHING
        proposed: tuple[str, ...] = ()
        for drafter, goal in self._turns:
            room = min(goal, most) - len(draft)
            if room > 0:
                here = context.with_tail(draft.tokens) if len(draft) else context
                try:
                    part = _asked(drafter, here, room, choose)
                    proposed += part.sources
                    draft = draft.then(part.clip(room))
                except Exception as error:
                    blame(error, drafter.name)
                if len(part) and self._is_over(draft):
                    break
        return Gathered(draft, proposed)

    def _is_over(self, draft: Draft) -> bool:
        """Whether nothing can follow: an end token, or a tree, which has many ends."""
        return int(draft.tokens[-1]) in self._ends or not draft.is_chain

    def learn(self, context: Context, outcome: Outcome) -> None:
        """Nothing changes the quotas."""

    def park(self, name: str) -> None:
        """Cheaper drafters write up to its quota."""
        self._turns = [turn for turn in self._turns if turn[0].name != name]

    def describe(self) -> str:
        """The counts."""
        return f"K {','.join(map(str, self.counts))}"


def _asked(drafter: Drafter, context: Context, k: int, choose: Choose) -> Draft:
    """What a drafter proposes; raises ConfigError if that is no draft."""
    draft = drafter.propose(context, k, choose)
    if not isinstance(draft, Draft):
        raise ConfigError(f"a proposal must be a Draft, got {type(draft).__name__}")
    if draft is not NOTHING:
        draft.check()
        if not set(map(type, draft.sources)) <= {str}:
            raise ConfigError(f"sources must be names, got {draft.sources!r}")
    return draft
