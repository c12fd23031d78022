"""The schedule of a cascade: how much every drafter drafts in a round.

`StaticSchedule` is the paper's static schedule, one row of the K matrix.
`planner.Planner` decides in every round.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol, runtime_checkable

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Choose, Draft, Drafter, Rows, Verdict
from edgecs.core.faults import blame
from edgecs.decoding.exactness import EVERY, Allowed
from edgecs.errors import ConfigError

Clock = Callable[[], float]
"""Returns seconds since an arbitrary time."""


class Plan(NamedTuple):
    """The reasons for a draft; times in seconds."""

    probabilities: list[float]  # [token]: that the draft is right up to it
    expected: float  # tokens per second of the round
    plain: float  # tokens per second of plain decoding
    widths: list[int]  # that were considered
    reason: str  # in words


class Gathered(NamedTuple):
    """A draft for the reviewer."""

    draft: Draft
    proposed: tuple[str, ...]  # drafter of each token, before any clipping
    plan: Plan | None = None
    ahead: int = 0  # its first tokens that were made during the last call


class Outcome(NamedTuple):
    """The outcome of a draft, for the schedule."""

    draft: Draft
    rows: Rows
    verdict: Verdict
    drafting: float  # seconds of drafting
    calling: float  # seconds of the reviewer's call
    together: int = 1  # requests that this call had


class Schedule(Protocol):
    """Decides how much every drafter drafts."""

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        """The drafters, the best first."""

    def begin(self) -> None:
        """Called when an answer begins."""

    def draft(
        self,
        context: Context,
        choose: Choose,
        most: int,
        allowed: Allowed = EVERY,
        together: int = 1,
    ) -> Gathered:
        """A draft of at most `most` tokens.

        allowed: permitted widths of the reviewer's call; a draft of another width is
        clipped to the next smaller one. together: requests that the call will have.
        """

    def learn(self, context: Context, outcome: Outcome) -> None:
        """Called once per round, before its tokens are committed."""

    def park(self, name: str) -> None:
        """Disables a drafter that failed."""

    def describe(self) -> str:
        """A one-line description of the schedule."""


@runtime_checkable
class Overlapping(Protocol):
    """A schedule whose drafters may work while the reviewer computes."""

    @property
    def overlaps(self) -> bool:
        """Whether any of them ever does."""

    def go_on(self, context: Context, draft: Draft, choose: Choose, most: int) -> bool:
        """Called before the reviewer verifies a draft; whether a drafter goes on.

        most: tokens that may follow the draft and the reviewer's own token.
        """

    def come_back(self) -> int:
        """Called after that call; the number of tokens that were made ahead.

        Raises Faulty if the drafter failed.
        """

    def close(self) -> None:
        """Ends the work; may be called again."""


class StaticSchedule:
    """Every drafter drafts until the quotas up to its own are filled.

    counts: quota of each drafter per round, a row of the K matrix. ends:
    end-of-generation tokens; nothing follows them.
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
        """The drafters, the best first."""
        return self._drafters

    def begin(self) -> None:
        """Does nothing: all rounds are the same."""

    def draft(
        self,
        context: Context,
        choose: Choose,
        most: int,
        allowed: Allowed = EVERY,
        together: int = 1,
    ) -> Gathered:
        """The drafters' tokens, the best drafter's first (horizontal cascade).

        Nothing for a call with several requests: whether it pays is not known.
        """
        draft = NOTHING
        most = 0 if together > 1 else most
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
        """Does nothing: the quotas are fixed."""

    def park(self, name: str) -> None:
        """Disables a drafter; cheaper ones fill its quota."""
        self._turns = [turn for turn in self._turns if turn[0].name != name]

    def describe(self) -> str:
        """The quotas."""
        return f"K {','.join(map(str, self.counts))}"


def _asked(drafter: Drafter, context: Context, k: int, choose: Choose) -> Draft:
    """A drafter's proposal; raises ConfigError if it is not a valid draft."""
    draft = drafter.propose(context, k, choose)
    if not isinstance(draft, Draft):
        raise ConfigError(f"a proposal must be a Draft, got {type(draft).__name__}")
    if draft is not NOTHING:
        draft.check()
        if not set(map(type, draft.sources)) <= {str}:
            raise ConfigError(f"sources must be names, got {draft.sources!r}")
    return draft
