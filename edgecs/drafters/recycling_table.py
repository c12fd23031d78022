"""The table of Token Recycling: the best ids of the last row after some tokens.

Sessions of a model share a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple, TypeVar

RANKS = 8  # ids that are kept of a row, as in the paper
LONGEST_RUN = 9  # longer runs of the same best id are not told apart
# chosen: the rows of a text of some hundred thousand tokens.
MOST = 1 << 16  # rows of a table; the one that was replaced longest ago is dropped

_Key = TypeVar("_Key", int, tuple[int, int])


class Best(NamedTuple):
    """The best ids of the last row after some tokens."""

    ids: list[int]
    run: int  # how many rows in a row had this first id, at most LONGEST_RUN


class BestRows(NamedTuple):
    """Rows by the last token, and by the last two; the newest entries come last."""

    after_one: dict[int, Best]
    after_two: dict[tuple[int, int], Best]


class RecyclingTable:
    """Rows by the last token, as in the paper, and by the last two.

    load: returns the rows that it begins with, called when they are first needed; None:
    it begins empty.

    >>> table = RecyclingTable()
    >>> table.learn([1, 3], [7, 9])
    >>> table.after_one[3].ids, table.after_two[1, 3].ids
    ([7, 9], [7, 9])
    """

    def __init__(self, load: Callable[[], BestRows] | None = None) -> None:
        self._load = load
        self.learned = False  # whether a row was learned since it began

    @cached_property
    def _rows(self) -> BestRows:
        return self._load() if self._load else BestRows({}, {})

    # Read once for each token of a draft, so they become plain attributes.
    @cached_property
    def after_one(self) -> dict[int, Best]:
        """Rows by the last token; the newest entry comes last."""
        return self._rows.after_one

    @cached_property
    def after_two(self) -> dict[tuple[int, int], Best]:
        """Rows by the last two tokens; the newest entry comes last."""
        return self._rows.after_two

    def copy(self) -> BestRows:
        """The rows as they are now; another thread may go on learning."""
        return BestRows(self.after_one.copy(), self.after_two.copy())

    def learn(self, end: Sequence[int], ids: list[int]) -> None:
        """Replace the ids that follow the last one or two tokens of `end`.

        ids: up to RANKS, the best first.
        """
        self.learned = True
        _put(self.after_one, end[-1], ids)
        if len(end) > 1:
            _put(self.after_two, (end[-2], end[-1]), ids)


def _put(table: dict[_Key, Best], key: _Key, ids: list[int]) -> None:
    known = table.pop(key, None)
    run = min(known.run + 1, LONGEST_RUN) if known and known.ids[0] == ids[0] else 1
    table[key] = Best(ids, run)
    if len(table) > MOST:
        del table[next(iter(table))]
