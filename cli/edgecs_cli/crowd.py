"""Whether other programs compute while answers are written, which makes them slow."""

from __future__ import annotations

import time

from edgecs import speculation
from edgecs.machine import Others

_SHORTEST = 0.5  # seconds; in less, what the system counts says nothing


class Crowd:
    """Watches answer by answer; says so once, and again after it was quiet."""

    def __init__(self) -> None:
        self._said = False
        self.answer_begins()

    def answer_begins(self) -> None:
        """From now on it is counted."""
        self._others, self._began = Others(), time.monotonic()

    def line(self) -> str | None:
        """What is to be said after an answer."""
        if time.monotonic() - self._began < _SHORTEST:
            return None
        share = self._others.share
        said, self._said = self._said, share > speculation.BUSY
        if said or not self._said:
            return None
        return (
            f"other programs compute: they took {share:.0%} of the processors "
            "meanwhile, which makes answers slower"
        )
