"""Replays scenarios with one store of texts after the other.

Scenarios are replayed as one user has them: those for tuning first, then the others,
which are reported. The planner, Token Recycling and the user's store live through all
of them; the texts of a session end with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from edgecs.drafters.bigrams import Bigrams
from edgecs.drafters.maxgram import MaxGram
from edgecs.drafters.phrased import Phrased
from edgecs.drafters.recalled import Recalled
from edgecs.drafters.registry import PHRASES, RECENT, USER
from edgecs.drafters.source import Source
from edgecs_bench.hardware.curves import Curve
from edgecs_bench.memory.stores import (
    Found,
    FoundTexts,
    SessionSource,
    look_up,
    look_up_phrases,
)
from edgecs_bench.memory.traces import Answer
from edgecs_bench.simulation.replay import Player
from edgecs_bench.simulation.replay_drafter import HeardRecycling, Watch

LEVELS = ("max_gram", "session", "user", "recycling", "phrases")
"""Each has the sources of those before it too."""


class Recorded(NamedTuple):
    """The answers of a target in the order of a replay, and what stores find."""

    target: str
    answers: list[Answer]
    user: Found
    phrases: Found


def prepared(
    target: str, answers: Iterable[Answer], phrases: Sequence[Sequence[int]]
) -> Recorded:
    """Sorts the answers, and looks all of them up."""
    # The sort is stable, so scenarios and their answers stay in the order of time.
    said = [answer for answer in answers if len(answer.output) > 1]
    ordered = sorted(said, key=lambda answer: not answer.tuning)
    frequent = look_up_phrases(ordered, phrases)
    return Recorded(target, ordered, look_up(ordered), frequent)


class Played(NamedTuple):
    """The times of an answer after its first token."""

    answer: Answer
    ms: float
    rounds: int
    plain: float  # milliseconds without drafts

    @property
    def tokens(self) -> int:
        """Those that were drafted or chosen in a round."""
        return len(self.answer.output) - 1


class Life:
    """One user's planner and stores on one curve, with the sources of a level."""

    def __init__(
        self, recorded: Recorded, level: str, curve: Curve, leaves: int
    ) -> None:
        watch, has = Watch(), LEVELS[: LEVELS.index(level) + 1]
        self._recorded = recorded
        self._session = SessionSource(watch, RECENT)
        self._stores = [
            FoundTexts(found, watch) for found in (recorded.user, recorded.phrases)
        ]
        user, phrases = self._stores
        sources: list[Source] = [MaxGram()]
        if "session" in has:
            sources.append(self._session)
        if "user" in has:
            sources.append(Recalled(user, USER))
        if "phrases" in has:
            sources.append(Phrased(phrases, PHRASES))
        if "recycling" in has:
            sources.append(HeardRecycling())
        sources.append(Bigrams())
        self.player = Player(curve, (), sources=sources, leaves=leaves, watch=watch)

    def play(self, before: Callable[[Answer], None] | None = None) -> list[Played]:
        """All answers in their order. before: called before each of them."""
        played, session = [], None
        for number, answer in enumerate(self._recorded.answers):
            if session != (session := (answer.scenario, answer.place.session)):
                self._session.restart()
            for store in self._stores:
                store.hear(number)
            if before:
                before(answer)
            widths, start = self.player.widths, len(self.player.widths)
            ms = self.player.play(answer.trace())
            prompt, last = len(answer.prompt), len(answer.output)
            curve, overhead = self.player.curve, self.player.curve.overhead
            plain = sum(curve.call(1, prompt + i) + overhead for i in range(1, last))
            played.append(Played(answer, ms, len(widths) - start, plain))
        return played


def reported(played: Iterable[Played]) -> list[Played]:
    """The answers of the half that was not used for tuning."""
    return [one for one in played if not one.answer.tuning]


def over_plain(played: Iterable[Played]) -> float:
    """The speed over plain decoding."""
    played = [*played]
    return sum(one.plain for one in played) / sum(one.ms for one in played)


def tokens_per_round(played: Iterable[Played]) -> float:
    """The mean number of tokens that a round gives."""
    played = [*played]
    return sum(one.tokens for one in played) / sum(one.rounds for one in played)
