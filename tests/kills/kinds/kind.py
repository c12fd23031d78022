"""What is killed, and what must not be lost: the base of all kinds of work."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from edgecs.testing.fakes import write_random_gguf
from tests.kills.running import Ended, Place


class Unreadable(Exception):
    """A file that edgecs cannot read, or that is not what it wrote."""


def entry(path: Path) -> dict[str, Any]:
    """What a saved conversation says."""
    with zipfile.ZipFile(path) as archive:
        text: dict[str, Any] = json.loads(archive.read("conversation.json"))
    return text


@dataclass(frozen=True)
class Command:
    """What is run. typed: lines of a chat."""

    arguments: list[str]
    typed: list[str] | None = None
    variables: dict[str, str] = field(default_factory=dict)


class Kind:
    """One sort of work.

    What `look` finds after a kill is compared with what it found before that run.
    """

    name = ""

    def __init__(self, assets: Path) -> None:
        self.assets = assets
        self.model = assets / "tiny.gguf"
        if not self.model.exists():
            write_random_gguf(self.model, n_ctx=2048)
        self.whole: Any = None  # what `look` found after a run that was not killed

    def begin(self, place: Place, random: Random) -> None:
        """Puts there what is there before the first run."""

    def command(self, place: Place) -> Command | None:
        """What does the work, or the rest of it; None: it is done."""
        raise NotImplementedError

    def look(self, place: Place) -> Any:
        """What is there. Raises Unreadable."""
        raise NotImplementedError

    def lost(self, before: Any, now: Any, ended: Ended) -> list[str]:
        """What was finished and is not there."""
        raise NotImplementedError

    def different(self, now: Any) -> list[str]:
        """In what a work that is done differs from one that was never killed."""
        return [] if now == self.whole else [f"{now} instead of {self.whole}"]

    def known(self, file: str) -> str:
        """A file's name without what is another one in each run."""
        return file

    def close(self) -> None:
        """Ends what the kind needs."""
