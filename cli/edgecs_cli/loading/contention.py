"""Detects other programs that use the CPU while answers are generated."""

from __future__ import annotations

import time

from edgecs.calibrate import speculation_profile
from edgecs.engines.host import Others, busiest

_SHORTEST = 0.5  # seconds; the system's counters are too coarse for less


class Contention:
    """Watches every answer; reports contention once until it has stopped."""

    def __init__(self) -> None:
        self._reported = False
        self.answer_begins()

    def answer_begins(self) -> None:
        """Starts counting."""
        self._others, self._began = Others(), time.monotonic()

    def line(self) -> str | None:
        """The message to show after an answer; None: nothing new."""
        if time.monotonic() - self._began < _SHORTEST:
            return None
        share = self._others.share
        before, self._reported = self._reported, share > speculation_profile.BUSY
        if before or not self._reported:
            return None
        name = busiest()
        most = f" (mostly {name})" if name else ""
        return (
            f"other programs{most} used {share:.0%} of the CPU during this answer, "
            "which slows it down"
        )
