"""Whether other programs take processor time while answers are generated."""

from __future__ import annotations

import time

from edgecs.calibrate import speculation_profile
from edgecs.engines.host import Others, busiest

_SHORTEST = 0.5  # seconds; the system's counters are too coarse for less


class Contention:
    """Watches answer by answer; reports it once, and again after it has stopped."""

    def __init__(self) -> None:
        self._said = False
        self.answer_begins()

    def answer_begins(self) -> None:
        """Starts to count."""
        self._others, self._began = Others(), time.monotonic()

    def line(self) -> str | None:
        """What to tell the user after an answer; None: nothing new."""
        if time.monotonic() - self._began < _SHORTEST:
            return None
        share = self._others.share
        said, self._said = self._said, share > speculation_profile.BUSY
        if said or not self._said:
            return None
        name = busiest()
        most = f" ({name} most of all)" if name else ""
        return (
            f"other programs compute{most}: they took {share:.0%} of the processors "
            "meanwhile, which makes answers slower"
        )
