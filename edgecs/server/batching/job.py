"""Jobs of the scheduler, their events, and counts of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from edgecs.core.context import Tokens
from edgecs.errors import EdgecsError
from edgecs.sampling.chain import Rule
from edgecs.session.answer import FinishReason, Token
from edgecs.session.stats import Stats


class Busy(EdgecsError):
    """The queue is full: the client should retry later."""


@dataclass(frozen=True)
class Job:
    """A prompt to answer and how; see `Session.generate`."""

    prompt: Tokens
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    rule: Rule | None = None
    logprobs: int | None = None
    details: bool = False
    shown: Mapping[int, bytes] | None = None
    speculate: bool = True
    caches: bool = True  # False: it uses no cells of others, and leaves none
    memory: bool = True  # False: it uses no stored texts, and is not stored
    deadline: float | None = None  # `time.monotonic` at which the answer ends


class Ended(NamedTuple):
    """The last event of an answer without an error."""

    reason: FinishReason
    stats: Stats
    chain: list[str]
    why_plain: str | None  # why there were no drafts
    stop: str | None = None  # the stop string that ended it


Event = list[Token] | Ended | EdgecsError
"""The tokens of one round, or the end, or an error, which also ends the answer."""


class Ticket:
    """A submitted job."""

    def __init__(self, job: Job, notify: Callable[[Event], None]) -> None:
        self.job, self.notify = job, notify
        self.cancelled = False

    def cancel(self) -> None:
        """End the answer within a round; may be called from any thread, repeatedly."""
        self.cancelled = True

    @property
    def is_unwanted(self) -> bool:
        """Whether it was cancelled or its deadline has passed."""
        return self.cancelled or self.is_late

    @property
    def is_late(self) -> bool:
        """Whether its deadline has passed."""
        deadline = self.job.deadline
        return deadline is not None and time.monotonic() > deadline


class SlotState(NamedTuple):
    """A snapshot of a slot."""

    number: int
    state: str  # "idle", "reading" or "decoding"
    prompt_tokens: int
    tokens: int  # generated
    context: int  # tokens in its KV cells


@dataclass
class Totals:
    """Counts since the server started."""

    answers: int = 0
    errors: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    rounds: int = 0
    proposed: int = 0
    tested: int = 0
    accepted: int = 0
    faults: int = 0
    calls: int = 0  # decoding calls of the target
    requests: int = 0  # requests in these calls
    by_position: list[int] = field(default_factory=list)  # accepted draft tokens

    def count(self, stats: Stats, reason: FinishReason, *, faults: int = 0) -> None:
        """Add an answer. faults: drafters that failed in it."""
        self.answers += 1
        self.cancelled += reason == "cancelled"
        self.faults += faults
        self.prompt_tokens += stats.prompt_tokens
        self.cached_tokens += stats.cached_tokens
        self.tokens += stats.tokens
        self.rounds += stats.rounds
        self.proposed += stats.proposed
        self.tested += stats.tested
        self.accepted += stats.accepted
        for record in stats.records:
            for position in range(len(record.accepted)):
                if position == len(self.by_position):
                    self.by_position.append(0)
                self.by_position[position] += 1
