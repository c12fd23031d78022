"""Episodes: commands that are killed, looked after, and left to end their work."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.kills.kinds import KINDS
from tests.kills.kinds.kind import Kind, Unreadable
from tests.kills.running import Ended, Moment, Place, drawn

_AGAIN = 0.5  # probability of another kill in the same episode
_ORPHANS = 60.0  # seconds that what a killed command has started may take to end
_TRIES = 3  # kills for each that is wanted, as some come too late


@dataclass
class Counts:
    """What became of the kills of one kind."""

    kills: int = 0
    middle: int = 0  # of them: work had begun and had not ended
    episodes: int = 0  # works that were ended after their kills
    lost: int = 0
    unreadable: int = 0
    different: int = 0  # works that ended in another way than one never killed
    leftovers: int = 0
    locks: int = 0  # held after their owner was killed
    processes: int = 0  # that did not end after their owner was killed
    failed: int = 0  # commands that failed, or did not end, after a kill

    @property
    def problems(self) -> int:
        """All that must not be."""
        fields = {**asdict(self), "kills": 0, "middle": 0, "episodes": 0}
        return sum(fields.values())


class Loop:
    """Kills works of one kind. tell: takes what goes wrong, as sentences."""

    def __init__(
        self, kind: str, seed: str, folder: Path, tell: Callable[[str], None]
    ) -> None:
        self.counts = Counts()
        self._name, self._seed, self._tell = kind, seed, tell
        self._folder = folder
        assets = folder / "assets"
        assets.mkdir()
        self._kind: Kind = KINDS[kind][0](assets)
        self._files, self._seconds, self._steps = self._undisturbed()

    def close(self) -> None:
        """Ends what the kind needs."""
        self._kind.close()

    def run(self, kills: int) -> Counts:
        """Episodes, until so many kills came in the middle of the work."""
        number = 0
        while self.counts.middle < kills and self.counts.kills < _TRIES * kills:
            self._episode(number, kills)
            number += 1
        return self.counts

    def _undisturbed(self) -> tuple[set[str], float, int]:
        """Files, length and changes of a run that nothing happens to."""
        place = Place(self._folder / "whole")
        self._kind.begin(place, Random(0))
        ended = self._once(place, None)
        if ended is None or ended.code != 0:
            raise RuntimeError(f"{self._name} fails without a kill: {ended}")
        self._kind.whole = self._kind.look(place)
        return self._names(place), ended.seconds, len(ended.steps)

    def _names(self, place: Place) -> set[str]:
        return {self._kind.known(file) for file in place.files()}

    def _once(self, place: Place, moment: Moment | None) -> Ended | None:
        """One command; None: there is nothing left to do."""
        command = self._kind.command(place)
        if command is None:
            return None
        return place.run(command.arguments, command.typed, command.variables, moment)

    def _episode(self, number: int, kills: int) -> None:
        random = Random(f"{self._seed}:{self._name}:{number}")
        place = Place(self._folder / f"{number}")
        self._kind.begin(place, random)
        story: list[str] = []

        def wrong(what: str, problems: list[str]) -> None:
            if problems:
                setattr(self.counts, what, getattr(self.counts, what) + 1)
                told = "; ".join(ascii(problem)[1:-1][:400] for problem in problems)
                self._tell(
                    f"{self._name} {number}, killed {', then '.join(story)}: {what}: "
                    f"{told}"
                )

        try:
            self._killed(place, random, kills, story, wrong)
            self._ended(place, wrong)
        except Unreadable as error:
            wrong("unreadable", [str(error)])
        wrong("processes", place.end(_ORPHANS))
        self.counts.episodes += 1
        place.remove()

    def _killed(
        self,
        place: Place,
        random: Random,
        kills: int,
        story: list[str],
        wrong: Callable[[str, list[str]], None],
    ) -> None:
        """One kill or several; after each it is looked what is there."""
        while True:
            before = self._kind.look(place)
            moment = drawn(random, self._seconds, self._steps)
            ended = self._once(place, moment)
            if ended is None:
                return
            story.append(str(moment))
            self.counts.kills += 1
            self.counts.middle += ended.killed
            wrong("failed", _failure(ended))
            wrong("locks", place.held_locks())
            wrong("lost", self._kind.lost(before, self._kind.look(place), ended))
            more = random.random() < _AGAIN and self.counts.middle < kills
            if not ended.killed or not more:
                return

    def _ended(self, place: Place, wrong: Callable[[str, list[str]], None]) -> None:
        """The rest of the work, which nothing happens to, and what came of it."""
        ended = self._once(place, None)
        if ended:
            wrong("failed", _failure(ended))
            if ended.code != 0:
                return
        wrong("different", self._kind.different(self._kind.look(place)))
        wrong("leftovers", sorted(self._names(place) - self._files))


def _failure(ended: Ended) -> list[str]:
    """What is wrong with how a command ended: killed and done are both fine."""
    if ended.hangs:
        return ["it did not end"]
    if ended.crashed:
        return [f"it ended by itself ({ended.crashed}): {ended.said.strip()[-300:]}"]
    if ended.code:
        return [f"exit code {ended.code}: {ended.said.strip()[-300:]}"]
    if not ended.begun:
        return [f"it did not begin: {ended.said.strip()[-300:]}"]
    return []


def kill(
    kind: str, seed: str, kills: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Counts of one kind."""
    with tempfile.TemporaryDirectory(prefix="edgecs-kills-") as folder:
        loop = Loop(kind, seed, Path(folder), tell)
        try:
            counts = loop.run(kills)
        finally:
            loop.close()
    return {**asdict(counts), "problems": counts.problems}
