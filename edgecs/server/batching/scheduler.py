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
from contextlib import nullcontext
from functools import partial

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Request, Rows
from edgecs.costs.cost_model import CostModel
from edgecs.errors import Cancelled, EdgecsError, ModelError
from edgecs.server.batching.job import (
    Busy,
    Ended,
    Event,
    Job,
    SlotState,
    Ticket,
    Totals,
)
from edgecs.server.batching.joint import joint_width, most_drafted
from edgecs.server.batching.parts import PromptParts
from edgecs.server.batching.slots import Slot, choose, fill
from edgecs.server.http.incidents import incident
from edgecs.server.prefixes.store import PrefixStore
from edgecs.session.answer import Answer, FinishReason
from edgecs.session.session import Session

logger = logging.getLogger("edgecs")

MOST_WAITING = 64
# chosen: a client that leaves while a file is read is noticed in that time.
_LOOK = 0.1  # seconds


class Scheduler:
    """Computes jobs in its own thread; `close` ends it.

    sessions: one per slot, on different sequences of one target. costs: call times of
    the target; None: joint calls have no drafts. reads: tokens of a prefill chunk.
    waiting: length of the queue. strict: compute every answer in its own calls unless
    the target is uniform. store: saves the cells of conversations that lose their slot,
    and at the end all cells.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        costs: CostModel | None = None,
        *,
        reads: int = 512,
        waiting: int = MOST_WAITING,
        strict: bool = False,
        store: PrefixStore | None = None,
    ) -> None:
        self.target = sessions[0].target
        self.totals = Totals()
        self._slots = [Slot(i, session) for i, session in enumerate(sessions)]
        self._jobs = 0  # begun so far
        self._costs, self._chunk, self._most_waiting = costs, reads, waiting
        self._parts = PromptParts(reads)
        self._strict, self._store = strict, store
        self._waiting: deque[Ticket] = deque()
        self._wake = threading.Condition()
        self._closing = False
        if store is not None:
            store.on_read(self._notify)
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
            waiting = sum(not one.is_unwanted for one in self._waiting)
            if waiting >= self._most_waiting:
                raise Busy(f"{waiting} requests are already waiting: retry later")
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
        return sum(not one.is_unwanted for one in [*self._waiting])

    @property
    def refused_files(self) -> int:
        """Number of files of the prefix cache that were removed unused."""
        return self._store.refused if self._store else 0

    @property
    def dropped_files(self) -> int:
        """Number of conversations that the prefix cache did not save in time."""
        return self._store.dropped if self._store else 0

    def slots(self) -> list[SlotState]:
        """The state of every slot."""
        return [slot.state for slot in self._slots]

    def _open(self) -> list[Ticket]:
        under_way = [slot.ticket for slot in self._slots]
        return [*filter(None, under_way), *self._waiting]

    def _run(self) -> None:
        while self._wait():
            try:
                self._tidy()
                self._admit()
                if not self._step():
                    self._pause()
            except Exception as error:  # a bug must not leave clients waiting
                self._fail(self._slots, incident("the scheduler failed", error))
        if self._store:
            for slot in sorted(self._slots, key=lambda slot: slot.used):
                self._store.save(slot.sequence, waits=True)

    def _notify(self) -> None:
        """Called in another thread when a file was read."""
        with self._wake:
            self._wake.notify()

    def _pause(self) -> None:
        """Wait for a file, another job, or the end of an answer that waits for one."""
        with self._wake:
            files = [slot.fetching for slot in self._slots if slot.fetching]
            if not (self._waiting or any(file.is_done for file in files)):
                self._wake.wait(_LOOK)

    def _wait(self) -> bool:
        """Wait for work; False if it was closed and all jobs are done."""
        with self._wake:
            while not self._open():
                if self._closing:
                    return False
                self._wake.wait()
        return True

    def _tidy(self) -> None:
        """Drop jobs from the queue that were cancelled or are late."""
        with self._wake:
            dropped = [ticket for ticket in self._waiting if ticket.is_unwanted]
            for ticket in dropped:
                self._waiting.remove(ticket)
        for ticket in dropped:
            self.totals.cancelled += 1
            ticket.notify(Cancelled("it was cancelled or timed out in the queue"))

    def _admit(self) -> None:
        """Assign waiting jobs to free slots."""
        free = [slot for slot in self._slots if slot.ticket is None]
        while free:
            with self._wake:
                if not self._waiting:
                    return
                ticket = self._waiting.popleft()
            slot = choose(free, ticket.job)
            try:
                self._begin(slot, ticket)
            except Exception as error:
                self._refuse(slot, ticket, error)
            if slot.ticket is not None:
                free.remove(slot)

    def _refuse(self, slot: Slot, ticket: Ticket, error: Exception) -> None:
        """End a job that could not begin."""
        if not isinstance(error, EdgecsError):
            error = incident("a job could not begin", error)
        if slot.ticket is ticket:
            self._fail([slot], error)
        else:
            self.totals.errors += 1
            ticket.notify(error)

    def _begin(self, slot: Slot, ticket: Ticket) -> None:
        job = ticket.job
        held = len(slot.session.context)
        lost = slot.loses(job.prompt) if job.caches else held
        answer = slot.session.begin(
            job.prompt,
            max_tokens=job.max_tokens,
            stop=job.stop,
            rule=job.rule,
            logprobs=job.logprobs,
            details=job.details,
            shown=job.shown,
            memory=job.memory,
        )
        self._jobs += 1
        slot.take(ticket, answer, lost, self._jobs)
        answer.start()
        if answer.finish_reason:
            self._end(slot)

    def _step(self) -> bool:
        """One prompt chunk, and a round of every answer that is decoding.

        Returns False if there was neither: all answers wait for files.
        """
        for slot in self._slots:
            if slot.is_unwanted:
                self._guarded([slot], partial(self._end, slot, "cancelled"))
        decoding = [slot for slot in self._slots if slot.is_decoding]
        reading = [slot for slot in self._slots if slot.is_reading]
        first = self._next_reading(reading)
        if first is not None:
            self._guarded([first], partial(self._read, first, alone=not decoding))
        if decoding:
            together = [slot for slot in decoding if self._may_join(slot)]
            alone = [slot for slot in decoding if slot not in together]
            for group in [together, *([one] for one in alone)]:
                self._guarded(group, partial(self._round, group))
        return bool(first or decoding)

    def _next_reading(self, reading: Sequence[Slot]) -> Slot | None:
        """The oldest answer whose prompt can be read now; others wait for files.

        Cells are fetched only then, as an older prompt may have the same prefix.
        """
        for slot in sorted(reading, key=lambda slot: slot.used):
            if slot.read is None:
                self._guarded([slot], partial(self._fill, slot))
            if slot.read is not None and slot.is_reading:
                return slot
        return None

    def _fill(self, slot: Slot) -> None:
        assert slot.ticket is not None
        fill(slot, self._slots, slot.ticket.job.prompt, self._store)

    def _guarded(self, group: Sequence[Slot], work: Callable[[], None]) -> None:
        """Call `work` for some slots; an error ends only their answers."""
        try:
            work()
        except Cancelled:
            for slot in group:
                if slot.is_unwanted or self.target.cancel.is_set():
                    self._end(slot, "cancelled")
        except EdgecsError as error:
            self._fail(group, error)
        except Exception as error:
            self._fail(group, incident("an answer failed", error))

    def _may_join(self, slot: Slot) -> bool:
        """Whether its rows may be computed in a joint call."""
        if getattr(self.target, "uniform", False):
            return True
        if self._strict:
            return False
        depth = len(slot.session.context) - 1
        return slot.session.cascade.limits.tier(depth) == "numeric"

    def _read(self, slot: Slot, *, alone: bool) -> None:
        """Read a chunk of a prompt; the last one gives the first token.

        alone: whether no other answer is decoding.
        """
        answer, ticket = slot.answer, slot.ticket
        assert answer is not None
        assert ticket is not None
        prompt = ticket.job.prompt
        assert slot.read is not None
        end = self._part_end(slot.read, alone)
        if end < prompt.size:
            part = Request(
                Context(prompt[:end]),
                NOTHING,
                slot.session.cascade.sequence,
                slot.session.cascade.cancel,
            )
            rows, seconds = slot.session.cascade.call(part)
            self._parts.read(rows.fed, seconds)
            answer.read += rows.fed
            slot.read = end
            return
        rows, seconds = slot.session.cascade.call(answer.request(0))
        self._parts.read(rows.fed, seconds)
        self._take(slot, answer, rows, seconds)

    def _part_end(self, read: int, alone: bool) -> int:
        """End of the next chunk of a prompt of which `read` tokens have KV cells."""
        uniform = getattr(self.target, "uniform", False)
        if uniform:
            if alone:
                return read + self._parts.tokens_alone
            reading = [slot for slot in self._slots if slot.is_reading]
            prompts = sum(slot.fetching is None for slot in reading)
            return read + self._parts.tokens(prompts)
        # Its cells depend on the chunks, so these are the ones of a single session.
        return (read // self._chunk + 1) * self._chunk

    def _round(self, group: Sequence[Slot]) -> None:
        """One call for a group of answers."""
        pairs = [(slot, slot.answer) for slot in group if slot.answer is not None]
        if not pairs:
            return
        most = None if len(pairs) == 1 else most_drafted(len(pairs), self._costs)
        requests = []
        for slot, answer in pairs:
            speculates = slot.ticket is not None and slot.ticket.job.speculate
            limit = most if speculates else 0
            requests.append(answer.request(limit, together=len(pairs)))
        if len(pairs) > 1:
            width = joint_width([answer for _, answer in pairs], self._costs)
            requests = [answer.narrowed(width - 1) for _, answer in pairs]
        # The drafter of a sole answer may go on; those of several would take turns.
        goes_on = pairs[0][1].ahead() if len(pairs) == 1 else nullcontext()
        with goes_on:
            began = time.perf_counter()
            rows = self.target.score(requests)
            seconds = time.perf_counter() - began
        self._parts.decoded(seconds)
        self.totals.calls += 1
        self.totals.requests += len(pairs)
        for (slot, answer), found in zip(pairs, rows, strict=True):
            take = partial(self._take, slot, answer, found, seconds, len(pairs))
            self._guarded([slot], take)

    def _take(
        self, slot: Slot, answer: Answer, rows: Rows, seconds: float, together: int = 1
    ) -> None:
        """Pass the tokens of a call to the client."""
        tokens = [*answer.take(rows, seconds, together)]
        if slot.ticket is None:
            return
        slot.ticket.notify(tokens)
        if answer.finish_reason is not None:
            self._end(slot)

    def _end(self, slot: Slot, reason: FinishReason | None = None) -> None:
        """End an answer and free its slot."""
        ticket, answer, session = slot.ticket, slot.answer, slot.session
        assert ticket is not None
        assert answer is not None
        try:
            self._free(slot, answer, reason)
        except EdgecsError as error:
            self.totals.errors += 1
            ticket.notify(error)
            return
        stats = answer.stats
        new = len(stats.faults) - slot.faults
        self.totals.count(stats, answer.finish_reason or "cancelled", faults=new)
        why = session.off_reason
        if why is None and not ticket.job.speculate:
            why = "not asked for"
        why_ended = answer.finish_reason or "cancelled"
        ticket.notify(Ended(why_ended, stats, session.chain, why, answer.stop))

    def _free(self, slot: Slot, answer: Answer, reason: FinishReason | None) -> None:
        """Free a slot; a private answer leaves no cells."""
        forgets = slot.is_private and slot.read is not None
        slot.ticket = slot.answer = slot.fetching = None
        try:
            slot.session.ended(answer, reason)
        finally:
            if forgets:
                self.target.forget(slot.sequence)

    def _fail(self, group: Sequence[Slot], error: EdgecsError) -> None:
        """End the answers of some slots with an error."""
        for slot in group:
            ticket, answer = slot.ticket, slot.answer
            if ticket is None or answer is None:
                continue
            try:
                self._free(slot, answer, "cancelled")
            except Exception:
                logger.exception("a session could not be ended")
            self.totals.errors += 1
            ticket.notify(error)
