"""Answers of several conversations with one target: one thread computes for all.

Every slot has a session with a sequence of cells of its own. A prompt is read in parts,
so that answers under way do not wait for its end; rounds of several answers are one
call where their rows do not depend on each other. How wide such a call is, is decided
for all of it: drafts are verified as far as they raise the tokens a second of all
answers together (goodput; SmartSpec, arXiv 2406.14066).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import NOTHING, Request, Rows
from edgecs.costs.cost_model import WIDEST, CostModel
from edgecs.errors import Cancelled, EdgecsError, ModelError
from edgecs.sampling.chain import Rule
from edgecs.session.answer import Answer, FinishReason, Token
from edgecs.session.session import Session
from edgecs.session.stats import Stats

logger = logging.getLogger("edgecs")

_PART = 128  # tokens of a prompt between two rounds of others; chosen
MOST_WAITING = 64


class Busy(EdgecsError):
    """There is no room in the queue: the client should come back later."""


@dataclass(frozen=True)
class Job:
    """What is to be answered; see `Session.generate`."""

    prompt: Tokens
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    rule: Rule | None = None
    logprobs: int | None = None
    speculate: bool = True
    deadline: float | None = None  # of `time.monotonic`; the answer ends then


class Ended(NamedTuple):
    """The last event of an answer that was not refused."""

    reason: FinishReason
    stats: Stats
    chain: list[str]
    why_plain: str | None  # why there were no drafts


Event = list[Token] | Ended | EdgecsError
"""Tokens of one round; the end; or an error, which is the end too."""


class Ticket:
    """A job in the scheduler's hands."""

    def __init__(self, job: Job, notify: Callable[[Event], None]) -> None:
        self.job, self.notify = job, notify
        self.cancelled = False

    def cancel(self) -> None:
        """Ends the answer within a round; may be called from any thread, and again."""
        self.cancelled = True

    @property
    def is_unwanted(self) -> bool:
        """Whether it was cancelled, or its time is up."""
        return self.cancelled or self.is_late

    @property
    def is_late(self) -> bool:
        """Whether its time is up."""
        deadline = self.job.deadline
        return deadline is not None and time.monotonic() > deadline


@dataclass(eq=False)
class _Slot:
    """A session, and the answer that it is at."""

    number: int
    session: Session
    ticket: Ticket | None = None
    answer: Answer | None = None
    read: int = 0  # tokens of the prompt that have cells
    used: float = 0.0  # when it was last given a job

    @property
    def is_reading(self) -> bool:
        return self.answer is not None and not self.answer.stats.tokens

    @property
    def is_decoding(self) -> bool:
        return self.answer is not None and self.answer.stats.tokens > 0

    @property
    def is_unwanted(self) -> bool:
        return self.ticket is not None and self.ticket.is_unwanted

    def shared(self, prompt: Tokens) -> int:
        """Tokens at the start of a prompt that it has read before."""
        tokens = self.session.context.tokens
        size = min(tokens.size, prompt.size)
        other = np.flatnonzero(tokens[:size] != prompt[:size])
        return int(other[0]) if other.size else size


class SlotState(NamedTuple):
    """A slot as others may see it."""

    number: int
    state: str  # "idle", "reading" or "decoding"
    prompt_tokens: int
    tokens: int  # generated
    context: int  # tokens that are in its cells


@dataclass
class Totals:
    """What was answered since the start."""

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
    calls: int = 0  # of the target, while decoding
    requests: int = 0  # in these calls
    by_position: list[int] = field(default_factory=list)  # accepted draft tokens


class Scheduler:
    """Computes jobs in a thread of its own; `close` ends it.

    sessions: one for each slot, on different sequences of one target. costs: of the
    target, None: joint calls have no drafts. reads: tokens of a prefill chunk of a
    target whose rows depend on the cut of the prompt. waiting: jobs that may wait.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        costs: CostModel | None = None,
        *,
        reads: int = 512,
        waiting: int = MOST_WAITING,
    ) -> None:
        self.target = sessions[0].target
        self.totals = Totals()
        self._slots = [_Slot(i, session) for i, session in enumerate(sessions)]
        self._costs, self._chunk, self._most_waiting = costs, reads, waiting
        self._waiting: deque[Ticket] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="edgecs", daemon=True)
        self._thread.start()

    def submit(self, job: Job, notify: Callable[[Event], None]) -> Ticket:
        """Puts a job into the queue. notify: called in the scheduler's thread.

        Raises Busy where too many wait, ModelError after `close`.
        """
        ticket = Ticket(job, notify)
        with self._wake:
            if self._closing:
                raise ModelError("the server is shutting down: ask another one")
            if len(self._waiting) >= self._most_waiting:
                raise Busy(
                    f"{len(self._waiting)} requests are waiting already: try again "
                    "later"
                )
            self._waiting.append(ticket)
            self._wake.notify()
        return ticket

    def close(self, patience: float = 0.0) -> None:
        """Waits for all answers for so many seconds, then ends them, and the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(patience)
        for ticket in self._open():
            ticket.cancel()
        self._thread.join()

    @property
    def queued(self) -> int:
        """Jobs that wait for a slot."""
        return len(self._waiting)

    def slots(self) -> list[SlotState]:
        """What every slot does."""
        return [_state(slot) for slot in self._slots]

    def _open(self) -> list[Ticket]:
        under_way = [slot.ticket for slot in self._slots]
        return [*filter(None, under_way), *self._waiting]

    def _run(self) -> None:
        while self._wait():
            try:
                self._admit()
                self._step()
            except Exception as error:  # of ours: no client may wait for ever
                logger.exception("the scheduler failed")
                self._fail(self._slots, ModelError(f"internal error: {error!r}"))

    def _wait(self) -> bool:
        """Waits for something to do; False: it was closed, and all is done."""
        with self._wake:
            while not self._open():
                if self._closing:
                    return False
                self._wake.wait()
        return True

    def _admit(self) -> None:
        """Gives waiting jobs to free slots, each by what they have read."""
        free = [slot for slot in self._slots if slot.ticket is None]
        while free:
            with self._wake:
                if not self._waiting:
                    return
                ticket = self._waiting.popleft()
            if ticket.is_unwanted:
                ticket.notify(Cancelled("it was cancelled, or its time was up"))
                self.totals.cancelled += 1
                continue
            prompt = ticket.job.prompt
            slot = max(free, key=lambda slot: (slot.shared(prompt), -slot.used))
            if self._begin(slot, ticket):
                free.remove(slot)

    def _begin(self, slot: _Slot, ticket: Ticket) -> bool:
        job, shared = ticket.job, slot.shared(ticket.job.prompt)
        try:
            answer = slot.session.begin(
                job.prompt,
                max_tokens=job.max_tokens,
                stop=job.stop,
                rule=job.rule,
                logprobs=job.logprobs,
            )
        except EdgecsError as error:
            self.totals.errors += 1
            ticket.notify(error)
            return False
        slot.ticket, slot.answer = ticket, answer
        slot.read, slot.used = min(shared, job.prompt.size - 1), time.monotonic()
        answer.start()
        if answer.finish_reason:
            self._end(slot)
        return True

    def _step(self) -> None:
        """A part of one prompt, and a round of all answers under way."""
        for slot in self._slots:
            if slot.is_unwanted:
                self._guarded([slot], partial(self._end, slot, "cancelled"))
        decoding = [slot for slot in self._slots if slot.is_decoding]
        reading = [slot for slot in self._slots if slot.is_reading]
        if reading:
            first = min(reading, key=lambda slot: slot.used)
            self._guarded([first], partial(self._read, first, alone=not decoding))
        if decoding:
            together = [slot for slot in decoding if self._may_join(slot)]
            alone = [slot for slot in decoding if slot not in together]
            for group in [together, *([one] for one in alone)]:
                self._guarded(group, partial(self._round, group))

    def _guarded(self, group: Sequence[_Slot], work: Callable[[], None]) -> None:
        """Does something for some slots; what fails ends their answers alone."""
        try:
            work()
        except Cancelled:
            for slot in group:
                if slot.is_unwanted or self.target.cancel.is_set():
                    self._end(slot, "cancelled")
        except EdgecsError as error:
            self._fail(group, error)

    def _may_join(self, slot: _Slot) -> bool:
        """Whether its rows may be computed in a call with others."""
        if getattr(self.target, "uniform", False):
            return True
        depth = len(slot.session.context) - 1
        return slot.session.cascade.limits.tier(depth) == "numeric"

    def _read(self, slot: _Slot, *, alone: bool) -> None:
        """Reads a part of a prompt; the last one gives the first token.

        alone: nobody waits for it.
        """
        answer, ticket = slot.answer, slot.ticket
        assert answer is not None
        assert ticket is not None
        prompt, end = ticket.job.prompt, self._part_end(slot.read, alone)
        if end < prompt.size:
            part = Request(
                Context(prompt[:end]),
                NOTHING,
                slot.session.cascade.sequence,
                slot.session.cascade.cancel,
            )
            answer.read += self.target.score([part])[0].fed
            slot.read = end
            return
        rows, seconds = slot.session.cascade.call(answer.request(0))
        self._take(slot, answer, rows, seconds)

    def _part_end(self, read: int, alone: bool) -> int:
        """Where the next part of a prompt ends, of which `read` tokens have cells."""
        uniform = getattr(self.target, "uniform", False)
        if uniform:
            return read + (self._chunk if alone else min(_PART, self._chunk))
        # Its cells depend on how a prompt is cut, so it is cut as if it were alone.
        return (read // self._chunk + 1) * self._chunk

    def _round(self, group: Sequence[_Slot]) -> None:
        """One call for some answers, and the tokens that it gives them."""
        pairs = [(slot, slot.answer) for slot in group if slot.answer is not None]
        if not pairs:
            return
        most = None if len(pairs) == 1 else self._most_drafted(len(pairs))
        requests = []
        for slot, answer in pairs:
            speculates = slot.ticket is not None and slot.ticket.job.speculate
            requests.append(answer.request(most if speculates else 0))
        if len(pairs) > 1:
            width = self._width([answer for _, answer in pairs])
            requests = [answer.narrowed(width - 1) for _, answer in pairs]
        began = time.perf_counter()
        rows = self.target.score(requests)
        seconds = time.perf_counter() - began
        self.totals.calls += 1
        self.totals.requests += len(pairs)
        for (slot, answer), found in zip(pairs, rows, strict=True):
            take = partial(self._take, slot, answer, found, seconds, len(pairs))
            self._guarded([slot], take)

    def _most_drafted(self, together: int) -> int:
        """Draft tokens that each of some answers may have in a joint call."""
        return WIDEST // together - 1 if self._costs and self._costs.known else 0

    def _width(self, answers: Sequence[Answer]) -> int:
        """Tokens of each request with which a joint call gives most tokens a second."""
        paths = [answer.promised for answer in answers]
        if not self._costs or not any(paths):
            return 1
        depth = max(len(answer.context) for answer in answers)
        return best_joint_width(paths, self._costs.times(depth))

    def _take(
        self, slot: _Slot, answer: Answer, rows: Rows, seconds: float, together: int = 1
    ) -> None:
        """Passes the tokens of a call on."""
        tokens = [*answer.take(rows, seconds, together)]
        if slot.ticket is None:
            return
        slot.ticket.notify(tokens)
        if answer.finish_reason is not None:
            self._end(slot)

    def _end(self, slot: _Slot, reason: FinishReason | None = None) -> None:
        """Ends an answer and frees its slot."""
        ticket, answer, session = slot.ticket, slot.answer, slot.session
        assert ticket is not None
        assert answer is not None
        slot.ticket = slot.answer = None
        try:
            session.ended(answer, reason)
        except EdgecsError as error:
            self.totals.errors += 1
            ticket.notify(error)
            return
        stats = answer.stats
        self._count(stats, answer.finish_reason or "cancelled")
        why = session.off_reason
        if why is None and not ticket.job.speculate:
            why = "not asked for"
        ticket.notify(
            Ended(answer.finish_reason or "cancelled", stats, session.chain, why)
        )

    def _fail(self, group: Sequence[_Slot], error: EdgecsError) -> None:
        """Ends the answers of some slots with an error."""
        for slot in group:
            ticket, answer = slot.ticket, slot.answer
            if ticket is None or answer is None:
                continue
            slot.ticket = slot.answer = None
            try:
                slot.session.ended(answer, "cancelled")
            except Exception:
                logger.exception("a session could not be ended")
            self.totals.errors += 1
            ticket.notify(error)

    def _count(self, stats: Stats, reason: FinishReason) -> None:
        totals = self.totals
        totals.answers += 1
        totals.cancelled += reason == "cancelled"
        totals.faults += len(stats.faults)
        for name in ("prompt_tokens", "cached_tokens", "tokens", "rounds"):
            setattr(totals, name, getattr(totals, name) + getattr(stats, name))
        for name in ("proposed", "tested", "accepted"):
            setattr(totals, name, getattr(totals, name) + getattr(stats, name))
        for record in stats.records:
            for position in range(len(record.accepted)):
                if position == len(totals.by_position):
                    totals.by_position.append(0)
                totals.by_position[position] += 1


def best_joint_width(paths: Sequence[Sequence[float]], times: Sequence[float]) -> int:
    """The width of each request that gives most tokens a second in a joint call.

    paths: of every request, the probability that its draft is right up to each token.
    times: seconds of a call by tokens, inf where they are not known. Every request is
    computed as wide as the widest, see `LlamaLM`.

    >>> times = [1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 1.9, 2.1]
    >>> best_joint_width([[0.9, 0.8], [0.1]], times), best_joint_width([[0.1]], times)
    (2, 1)
    """
    count = len(paths)
    best, width, expected = 0.0, 1, float(count)
    for each in range(1, len(times) // count + 1):
        if each > 1:
            more = [path[each - 2] for path in paths if len(path) > each - 2]
            if not more:
                break
            expected += sum(more)
        rate = expected / times[count * each - 1]
        if rate > best:
            best, width = rate, each
    return width


def _state(slot: _Slot) -> SlotState:
    answer, context = slot.answer, len(slot.session.context)
    if answer is None:
        return SlotState(slot.number, "idle", 0, 0, context)
    stats = answer.stats
    state = "decoding" if stats.tokens else "reading"
    return SlotState(slot.number, state, stats.prompt_tokens, stats.tokens, context)
