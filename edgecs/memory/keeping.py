"""A store behind the sessions of one model: looked up in rounds, written after answers.

Writing is done by a thread of its own, as a disk may make it wait.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecs.drafters.corpus import Match
from edgecs.errors import EdgecsError
from edgecs.memory.documents import Tokens
from edgecs.memory.recycled import KeptTable
from edgecs.memory.store import UserStore

# chosen: a question of some sentences, with which its answer is found again.
LEAD = 64  # tokens of the prompt that are stored before an answer
# chosen: shorter answers take no time.
_SHORTEST = 8  # tokens of an answer that is stored
_WAITING = 64  # answers; more are not stored
_PATIENCE = 10.0  # seconds that closing waits for what is being written


@dataclass(frozen=True)
class Wanted:
    """Which store a recipe uses.

    keeps: whether answers are added. allowed: asked before each is added, so that a
    user's change of mind counts at once.
    """

    folder: Path
    keeps: bool = True
    allowed: Callable[[], bool] = lambda: True


class Memory:
    """A store that sessions look up, as a `Corpus`, and add to. A context manager.

    store: belongs to it. source: name of the model. text_of: the text of tokens. tell:
    told once why nothing is stored any more. table: of Token Recycling, written after
    answers and at the end; None: none is kept.
    """

    def __init__(
        self,
        store: UserStore,
        wanted: Wanted,
        *,
        source: str,
        text_of: Callable[[Tokens], str],
        tell: Callable[[str], None],
        table: KeptTable | None = None,
    ) -> None:
        self.store, self._wanted, self.table = store, wanted, table
        self._source, self._text_of, self._tell = source, text_of, tell
        self._keeps = wanted.keeps and not store.read_only
        self._queue: queue.Queue[Tokens | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._work, daemon=True)
        if self._keeps:
            self._thread.start()

    def match(self, end: Sequence[int], k: int) -> Match | None:
        """See `Corpus`."""
        return self.store.match(end, k)

    def keep(self, tokens: Tokens, prompt: int) -> None:
        """Stores the answer after `prompt` tokens, with some of those, soon."""
        if self._keeps and len(tokens) - prompt >= _SHORTEST:
            with suppress(queue.Full):
                self._queue.put_nowait(tokens[max(0, prompt - LEAD) :].copy())

    def _work(self) -> None:
        while (tokens := self._queue.get()) is not None:
            if not self._keeps:
                continue
            try:
                if self._wanted.allowed():
                    self._store_one(tokens)
                    if self.table:
                        self.table.save_soon()
            except EdgecsError as error:
                self._keeps = False
                self._tell(f"answers are not kept any more: {error}")

    def _store_one(self, tokens: Tokens) -> None:
        tokens = np.asarray(tokens, dtype=np.int32)
        self.store.refresh()
        self.store.add("answer", self._source, self._text_of(tokens), tokens)

    def close(self) -> None:
        """Waits for what is being written, writes the table and closes the store."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(_PATIENCE)
        if self.table:
            self.table.save()
        self.store.close()

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
