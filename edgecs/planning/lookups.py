"""Whether looking a text up in a store is worth its time."""

from __future__ import annotations

from bisect import bisect_right

# chosen: where little is promised a store adds more than where much is.
_PROMISED = (0.1, 0.5, 2.0)  # expected tokens of the best proposal before the store's
# chosen: high enough for a new store to be asked some dozens of times.
_HOPED = 0.2  # expected tokens that a lookup is taken to add at first
# chosen: the usual time in RAM (`edgecs_bench.overhead`).
_SECONDS = 2e-5  # of a lookup, at first
# chosen: about the last 16 lookups count.
_WEIGHT = 1 / 16  # of a lookup in the averages
# chosen: a useless lookup of 50 us then takes 0.02 % of rounds of 4 ms.
_FIRST_WAIT, _LAST_WAIT = 4, 64  # rounds between lookups that are not worth their time


class Lookups:
    """What lookups in one store add to proposals, and how long they take.

    Both are averages of recent lookups. What is added depends on what other sources
    promise, so there is an average for each range of that. A store that is not worth
    its time is asked again after a number of rounds, which grows until it pays.
    """

    def __init__(self) -> None:
        ranges = len(_PROMISED) + 1
        self._added, self._seconds = [_HOPED] * ranges, _SECONDS
        self._skipped, self._wait = [0] * ranges, [_FIRST_WAIT] * ranges

    def pay(self, promised: float, token_seconds: float) -> bool:
        """Whether a lookup is expected to save more time than it takes.

        promised: expected tokens of the best proposal so far. token_seconds: what an
        additional token saves.
        """
        added = self._added[bisect_right(_PROMISED, promised)]
        return added * token_seconds > self._seconds

    def due(self, promised: float, token_seconds: float) -> bool:
        """Whether the store is asked in this round: it pays, or has waited enough."""
        at = bisect_right(_PROMISED, promised)
        if self._added[at] * token_seconds > self._seconds:
            self._skipped[at], self._wait[at] = 0, _FIRST_WAIT
            return True
        self._skipped[at] += 1
        if self._skipped[at] < self._wait[at]:
            return False
        self._skipped[at] = 0
        self._wait[at] = min(2 * self._wait[at], _LAST_WAIT)
        return True

    def learn(self, promised: float, added: float, seconds: float) -> None:
        """Learn from a lookup.

        added: expected tokens that it adds to those promised, less what drafting them
        costs.
        """
        at = bisect_right(_PROMISED, promised)
        self._added[at] += _WEIGHT * (added - self._added[at])
        self._seconds += _WEIGHT * (seconds - self._seconds)
