"""Slots: which one answers a prompt, and whose KV cells it takes over.

A conversation goes on in the slot that has its cells. A prompt that only shares a
prefix with other conversations, such as a common system prompt, leaves their slots
alone: it takes the least recently used slot, and the prefix is copied there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from edgecs.core.context import Tokens
from edgecs.core.draft import LanguageModel
from edgecs.server.batching.job import Job, SlotState, Ticket
from edgecs.server.prefixes.file_thread import Reading
from edgecs.server.prefixes.store import LEAST, PrefixStore
from edgecs.session.answer import Answer
from edgecs.session.session import Session

# chosen: what a template puts before an answer, and leaves out of later prompts.
_SUFFIX = 8  # tokens at the end of a prompt that a prompt that goes on may lack
# chosen: as llama-server's --slot-prompt-similarity.
_SIMILAR = 0.1  # share of a prompt that a slot must save if cells cannot be copied


@dataclass(eq=False)
class Slot:
    """A session and its current answer."""

    number: int
    session: Session
    ticket: Ticket | None = None
    answer: Answer | None = None
    read: int | None = None  # prompt tokens with KV cells; None: no call was made yet
    fetching: Reading | None = None  # a file with cells of the prompt
    used: int = 0  # number of its last job, counted over all slots
    asked: int = 0  # tokens of its last prompt
    lost: int = 0  # tokens of the conversation before that the last prompt lacks
    faults: int = 0  # drafters that had failed before the answer

    @property
    def target(self) -> LanguageModel:
        """The target, which all slots share."""
        return self.session.target

    @property
    def sequence(self) -> int:
        """Its KV sequence of the target."""
        return self.session.cascade.sequence

    @property
    def is_reading(self) -> bool:
        """Whether its answer has no token yet."""
        return self.answer is not None and not self.answer.stats.tokens

    @property
    def is_decoding(self) -> bool:
        """Whether its answer has tokens."""
        return self.answer is not None and self.answer.stats.tokens > 0

    @property
    def is_unwanted(self) -> bool:
        """Whether its answer was cancelled or is late."""
        return self.ticket is not None and self.ticket.is_unwanted

    @property
    def is_private(self) -> bool:
        """Whether its answer leaves no cells."""
        return self.ticket is not None and not self.ticket.job.caches

    def saves(self, prompt: Tokens, *, copied: bool = False) -> int:
        """How many tokens of a prompt its cells save, see `LanguageModel.reusable`."""
        return self.target.reusable(prompt, self.sequence, copied=copied)

    def loses(self, prompt: Tokens) -> int:
        """How many tokens of its conversation a prompt in their place would lose.

        A prompt that contains the last one goes on with it: what it lacks, such as the
        thoughts of the last answer, is not needed any more.
        """
        saved = self.saves(prompt)
        if self.asked - saved <= _SUFFIX:
            return 0
        return max(0, len(self.session.context) - saved)

    def take(self, ticket: Ticket, answer: Answer, lost: int, number: int) -> None:
        """Begin an answer. lost: see the fields; number: of the job."""
        self.ticket, self.answer, self.read = ticket, answer, None
        self.fetching = None
        self.lost, self.asked, self.used = lost, ticket.job.prompt.size, number
        self.faults = len(self.session.cascade.faults)

    @property
    def state(self) -> SlotState:
        """A snapshot."""
        answer, context = self.answer, len(self.session.context)
        if answer is None:
            return SlotState(self.number, "idle", 0, 0, context)
        stats = answer.stats
        state = "decoding" if stats.tokens else "reading"
        return SlotState(self.number, state, stats.prompt_tokens, stats.tokens, context)


def choose(free: Sequence[Slot], job: Job) -> Slot:
    """The slot that answers a prompt.

    That is the slot whose cells save most of it, if its conversation goes on with this
    prompt: if fewer tokens of that are lost than are saved, and than a copy costs.
    Where cells cannot be copied it must save a tenth of the prompt. Otherwise it is the
    least recently used slot, as for a private answer.
    """
    prompt = job.prompt
    if not job.caches:
        return min(free, key=lambda slot: slot.used)
    saved = {slot.number: slot.saves(prompt) for slot in free}
    best = max(free, key=lambda slot: (saved[slot.number], -slot.used))
    if _goes_on(best, prompt, saved[best.number]):
        return best
    return min(free, key=lambda slot: slot.used)


def _goes_on(slot: Slot, prompt: Tokens, saved: int) -> bool:
    cost = slot.target.copy_cost
    if cost is None:
        return saved >= _SIMILAR * prompt.size
    return saved > 0 and slot.loses(prompt) <= min(saved, cost)


class Source(NamedTuple):
    """Where cells can come from.

    gain: tokens of a prompt it saves, less its cost. copy: copies them from another
    slot; None: they are in the file of `path`.
    """

    gain: int
    copy: Callable[[], bool] | None = None
    path: Path | None = None


def fill(
    slot: Slot, slots: Sequence[Slot], prompt: Tokens, store: PrefixStore | None = None
) -> bool:
    """Fetch the cells of a prompt's prefix from another slot or from disk, if it pays.

    It pays if it saves more tokens of the prompt than are read in that time. Cells that
    a conversation loses here are saved on disk. A private answer gets none. Then
    `slot.read` is how many tokens of the prompt have cells. Returns False as long as it
    waits for a file: then it has to be called again.
    """
    if (fetching := slot.fetching) is not None and store:
        if not (fetching.is_done or fetching.is_late):
            return False
        slot.fetching = None
        if store.restore(fetching, slot.sequence):
            slot.read = slot.saves(prompt)
            return True
        store = None  # its files had their chance
    if store and slot.lost >= LEAST:
        store.save(slot.sequence)
        slot.lost = 0
    if slot.is_private:
        slot.target.forget(slot.sequence)
        slot.read = 0
        return True
    kept = slot.saves(prompt)
    sources = [*_copies(slot, slots, prompt), *_files(prompt, store)]
    best = max(sources, key=lambda source: source.gain, default=None)
    if best is None or best.gain <= kept:
        slot.read = kept
        return True
    if best.copy is not None:
        best.copy()
        slot.read = slot.saves(prompt)
        return True
    assert best.path is not None
    assert store is not None
    if any(one.fetching and one.fetching.path == best.path for one in slots):
        return False  # it will be copied from there
    slot.fetching = store.fetch(best.path)
    return slot.fetching.is_done and fill(slot, slots, prompt, store)


def _copies(slot: Slot, slots: Sequence[Slot], prompt: Tokens) -> Iterator[Source]:
    target, to = slot.target, slot.sequence
    if target.copy_cost is None:
        return
    for other in slots:
        if other is not slot and not other.is_private:
            saved = other.saves(prompt, copied=True)
            fetch = partial(target.copy, other.sequence, to, saved)
            yield Source(saved - target.copy_cost, fetch)


def _files(prompt: Tokens, store: PrefixStore | None) -> Iterator[Source]:
    found = store.find(prompt) if store else None
    if found:
        yield Source(found.saves - LEAST, path=found.path)
