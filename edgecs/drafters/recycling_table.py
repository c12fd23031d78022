"""The table of Token Recycling: the best ids of the last row after some tokens.

Sessions of a model share a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

RANKS = 8  # ids that are kept of a row, as in the paper
LONGEST_RUN = 9  # longer runs of the same best id are not told apart
# chosen: the rows of a text of some hundred thousand tokens.
_MOST = 1 << 16  # rows of a table; the one that was replaced longest ago is dropped

_Key = TypeVar("_Key", int, tuple[int, int])


class Best(NamedTuple):
    """The best ids of the last row after some tokens."""

    ids: list[int]
    run: int  # how many rows in a row had this first id, at most LONGEST_RUN


class RecyclingTable:
    """Rows by the last token, as in the paper, and by the last two.

    >>> table = RecyclingTable()
    >>> table.learn([1, 3], [7, 9])
    >>> table.after_one[3].ids, table.after_two[1, 3].ids
    ([7, 9], [7, 9])
    """

    def __init__(self) -> None:
        self.after_one: dict[int, Best] = {}  # the newest entry comes last
        self.after_two: dict[tuple[int, int], Best] = {}

    def learn(self, end: Sequence[int], ids: list[int]) -> None:
        """Replace the ids that follow the last one or two tokens of `end`.

        ids: up to RANKS, the best first.
        """
        _put(self.after_one, end[-1], ids)
        if len(end) > 1:
            _put(self.after_two, (end[-2], end[-1]), ids)


def _put(table: dict[_Key, Best], key: _Key, ids: list[int]) -> None:
    known = table.pop(key, None)
    run = min(known.run + 1, LONGEST_RUN) if known and known.ids[0] == ids[0] else 1
    table[key] = Best(ids, run)
    if len(table) > _MOST:
        del table[next(iter(table))]
