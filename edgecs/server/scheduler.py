"""Continuous batching: several conversations share the calls of one target.

One thread computes for all. Every slot has a session with its own sequence of KV cells.
Prompts are read in chunks between the rounds of other answers. Rounds of several
answers are one call if their rows are independent of each other. The width of a joint
call maximises the expected tokens per second of all its answers (goodput; SmartSpec,
arXiv 2406.14066).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import NOTHING, Request, Rows
from edgecs.costs.cost_model import WIDEST, CostModel
from edgecs.errors import Cancelled, EdgecsError, ModelError
from edgecs.server.job import Busy, Ended, Event, Job, SlotState, Ticket, Totals
from edgecs.session.answer import Answer, FinishReason
from edgecs.session.session import Session
from edgecs.session.stats import Stats

logger = logging.getLogger("edgecs")

# chosen: tokens of a prompt chunk between two rounds of other answers.
_PART = 128
MOST_WAITING = 64


@dataclass(eq=False)
class _Slot:
    """A session and its current answer."""

    number: int
    session: Session
    ticket: Ticket | None = None
    answer: Answer | None = None
    read: int = 0  # prompt tokens with KV cells
    used: float = 0.0  # `time.monotonic` of its last job

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
        """Length of the prefix that a prompt shares with its last conversation."""
        tokens = self.session.context.tokens
        size = min(tokens.size, prompt.size)
        other = np.flatnonzero(tokens[:size] != prompt[:size])
        return int(other[0]) if other.size else size


class Scheduler:
    """Computes jobs in its own thread; `close` ends it.

    sessions: one per slot, on different sequences of one target. costs: call times of
    the target; None: joint calls have no drafts. reads: tokens of a prefill chunk.
    waiting: length of the queue. strict: compute every answer in its own calls unless
    the target is uniform.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        costs: CostModel | None = None,
        *,
        reads: int = 512,
        waiting: int = MOST_WAITING,
        strict: bool = False,
    ) -> None:
        self.target = sessions[0].target
        self.totals = Totals()
        self._slots = [_Slot(i, session) for i, session in enumerate(sessions)]
        self._costs, self._chunk, self._most_waiting = costs, reads, waiting
        self._strict = strict
        self._waiting: deque[Ticket] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="edgecs", daemon=True)
        self._thread.start()

    def submit(self, job: Job, notify: Callable[[Event], None]) -> Ticket:
        """Add a job to the queue. notify: called in the scheduler's thread.

        Raises Busy if the queue is full, ModelError after `close`.
        """
        ticket = Ticket(job, notify)
        with self._wake:
            if self._closing:
                raise ModelError("the server is shutting down: use another one")
            if len(self._waiting) >= self._most_waiting:
                raise Busy(
                    f"{len(self._waiting)} requests are already waiting: retry later"
                )
            self._waiting.append(ticket)
            self._wake.notify()
        return ticket

    def close(self, patience: float = 0.0) -> None:
        """Wait up to `patience` seconds for all answers, then end them."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(patience)
        for ticket in self._open():
            ticket.cancel()
        self._thread.join()

    def cancel(self) -> None:
        """End all answers, those in the queue too, within a round."""
        with self._wake:
            for ticket in self._open():
                ticket.cancel()

    @property
    def queued(self) -> int:
        """Number of jobs that wait for a slot."""
        return len(self._waiting)

    def slots(self) -> list[SlotState]:
        """The state of every slot."""
        return [_state(slot) for slot in self._slots]

    def _open(self) -> list[Ticket]:
        under_way = [slot.ticket for slot in self._slots]
        return [*filter(None, under_way), *self._waiting]

    def _run(self) -> None:
        while self._wait():
            try:
                self._admit()
                self._step()
            except Exception as error:  # a bug must not leave clients waiting
                logger.exception("the scheduler failed")
                self._fail(self._slots, ModelError(f"internal error: {error!r}"))

    def _wait(self) -> bool:
        """Wait for work; False if it was closed and all jobs are done."""
        with self._wake:
            while not self._open():
                if self._closing:
                    return False
                self._wake.wait()
        return True

    def _admit(self) -> None:
        """Assign waiting jobs to free slots by the longest shared prefix."""
        free = [slot for slot in self._slots if slot.ticket is None]
        while free:
            with self._wake:
                if not self._waiting:
                    return
                ticket = self._waiting.popleft()
            if ticket.is_unwanted:
                ticket.notify(Cancelled("it was cancelled or timed out in the queue"))
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
        """One prompt chunk, and a round of every answer that is decoding."""
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
        """Call `work` for some slots; an error ends only their answers."""
        try:
            work()
        except Cancelled:
            for slot in group:
                if slot.is_unwanted or self.target.cancel.is_set():
                    self._end(slot, "cancelled")
        except EdgecsError as error:
            self._fail(group, error)

    def _may_join(self, slot: _Slot) -> bool:
        """Whether its rows may be computed in a joint call."""
        if getattr(self.target, "uniform", False):
            return True
        if self._strict:
            return False
        depth = len(slot.session.context) - 1
        return slot.session.cascade.limits.tier(depth) == "numeric"

    def _read(self, slot: _Slot, *, alone: bool) -> None:
        """Read a chunk of a prompt; the last one gives the first token.

        alone: whether no other answer is decoding.
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
        """End of the next chunk of a prompt of which `read` tokens have KV cells."""
        uniform = getattr(self.target, "uniform", False)
        if uniform:
            return read + (self._chunk if alone else min(_PART, self._chunk))
        # Its cells depend on the chunks, so these are the ones of a single session.
        return (read // self._chunk + 1) * self._chunk

    def _round(self, group: Sequence[_Slot]) -> None:
        """One call for a group of answers."""
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
        """The most draft tokens of each answer in a joint call."""
        return WIDEST // together - 1 if self._costs and self._costs.known else 0

    def _width(self, answers: Sequence[Answer]) -> int:
        """The width of each request in a joint call, see `best_joint_width`."""
        paths = [answer.promised for answer in answers]
        if not self._costs or not any(paths):
            return 1
        depth = max(len(answer.context) for answer in answers)
        return best_joint_width(paths, self._costs.times(depth))

    def _take(
        self, slot: _Slot, answer: Answer, rows: Rows, seconds: float, together: int = 1
    ) -> None:
        """Pass the tokens of a call to the client."""
        tokens = [*answer.take(rows, seconds, together)]
        if slot.ticket is None:
            return
        slot.ticket.notify(tokens)
        if answer.finish_reason is not None:
            self._end(slot)

    def _end(self, slot: _Slot, reason: FinishReason | None = None) -> None:
        """End an answer and free its slot."""
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
        """End the answers of some slots with an error."""
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
    """The width per request with the most expected tokens per second in a joint call.

    paths: for every request, the probability that its draft is right up to each token.
    times: seconds of a call by number of tokens, inf if unknown. All requests of a call
    count as equally wide: `LlamaLM` pads the narrower ones.

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
