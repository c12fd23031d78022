"""The stores of a replay: the user's as it was before each answer, and a session's."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgecs.core.context import Tokens
from edgecs.costs.cost_model import WIDEST
from edgecs.drafters.copies import LONGEST
from edgecs.drafters.corpus import Corpus, Match
from edgecs.drafters.recent_texts import RecentTexts
from edgecs.drafters.remembered import Remembered
from edgecs.memory.keeping import LEAD
from edgecs.memory.phrases import Phrases
from edgecs.memory.segment import built
from edgecs.memory.store import UserStore
from edgecs_bench.memory.traces import Answer
from edgecs_bench.simulation.replay_drafter import Watch

# chosen: the time that a lookup is allowed to take, and more than one in RAM takes.
SECONDS, RAM_SECONDS = 5e-5, 2e-5
_TOKENIZER = "00" * 32  # the identity of the tokenizer: a store has one recording

Found = list[dict[tuple[int, ...], Match]]
"""What a store finds after the ends of every answer."""


def look_up(answers: Sequence[Answer]) -> Found:
    """What the user's store finds at every position of every answer.

    The store is a real one, in a temporary folder, which is empty at first; every
    answer is added when it has ended, as the program does. The contents do not depend
    on the drafts, so the matches serve all curves.
    """
    every = [token for a in answers for token in (*a.prompt, *a.output)]
    with (
        tempfile.TemporaryDirectory() as folder,
        UserStore(Path(folder), _TOKENIZER, max(every) + 1) as store,
    ):
        found: Found = []
        for number, answer in enumerate(answers):
            found.append(_matches(store, answer))
            tokens = np.array([*answer.prompt[-LEAD:], *answer.output], dtype=np.int32)
            store.add("answer", "replay", f"answer {number}", tokens)
        return found


def look_up_phrases(
    answers: Sequence[Answer], phrases: Sequence[Sequence[int]]
) -> Found:
    """What texts of the target have at every position of every answer."""
    every = [token for a in answers for token in (*a.prompt, *a.output)]
    documents = [(i, np.array(one, dtype=np.int32)) for i, one in enumerate(phrases)]
    segment = built(documents, store=bytes(16), tokenizer=bytes(32))
    corpus = Phrases(segment, 1 + max(every, default=0))
    return [_matches(corpus, answer) for answer in answers]


def _matches(store: Corpus, answer: Answer) -> dict[tuple[int, ...], Match]:
    text, found = [*answer.prompt, *answer.output], {}
    for at in range(len(answer.prompt) + 1, len(text)):
        end = text[max(0, at - LONGEST) : at]
        if match := store.match(end, WIDEST - 1):
            found[tuple(end)] = match
    return found


class FoundTexts:
    """A corpus of recorded matches; a lookup advances the clock."""

    def __init__(self, found: Found, watch: Watch) -> None:
        self._found, self._watch = found, watch
        self._here: dict[tuple[int, ...], Match] = {}

    def hear(self, number: int) -> None:
        """Start an answer, by its number."""
        self._here = self._found[number]

    def match(self, end: Sequence[int], k: int) -> Match | None:
        """The recorded match, see `Corpus`."""
        self._watch.pass_by(SECONDS)
        found = self._here.get(tuple(end[-LONGEST:]))
        return found and found._replace(tokens=found.tokens[:k])


class SessionTexts:
    """The texts of one run of the program at a time; a lookup advances the clock."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.restart()

    def restart(self) -> None:
        """Forget all texts."""
        self._texts = RecentTexts()

    def add(self, tokens: Sequence[int] | Tokens) -> None:
        """Add a text."""
        self._texts.add(tokens)

    def match(self, end: Sequence[int], k: int) -> Match | None:
        """The longest match, see `Corpus`."""
        self._watch.pass_by(RAM_SECONDS)
        return self._texts.match(end, k)


class SessionSource(Remembered):
    """The source of a session's texts, which ends with the session."""

    def __init__(self, watch: Watch, name: str) -> None:
        self.texts = SessionTexts(watch)
        super().__init__(self.texts, name)

    def restart(self) -> None:
        """Begin another run of the program."""
        self.texts.restart()
        self._context = None
