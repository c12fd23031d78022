"""The table of Token Recycling: the best ids of the last row after some tokens.

Sessions of a model share a table, and its newest rows can be stored and read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np

RANKS = 8  # ids that are kept of a row, as in the paper
LONGEST_RUN = 9  # longer runs of the same best id are not told apart
# chosen: the rows of a text of some hundred thousand tokens.
_MOST = 1 << 16  # rows of a table; the one that was replaced longest ago is dropped
# chosen: 1 MiB; rows of pairs are more, and rarer each.
_STORED = 1 << 13, 1 << 14  # newest rows after one token, and after two, in `dump`
_MAGIC = 0x31524345  # "ECR1", little-endian

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

    def dump(self) -> bytes:
        """The newest rows, for `restore`: about 1 MiB at most."""
        ones = islice(reversed(self.after_one.items()), _STORED[0])
        twos = islice(reversed(self.after_two.items()), _STORED[1])
        rows = [_packed((-1, token), best) for token, best in ones]
        rows += [_packed(pair, best) for pair, best in twos]
        header = np.array([_MAGIC, len(rows)], dtype="<i4")
        return header.tobytes() + np.array(rows, dtype="<i4").tobytes()

    def restore(self, data: bytes, vocab_size: int) -> None:
        """Replace the rows with those of `dump`.

        vocab_size: ids are below it. Raises ValueError for other data; the rows are
        then as before.
        """
        width = 3 + RANKS
        if len(data) % 4 or len(data) < 8 or len(data) > 4 * (2 + width * sum(_STORED)):
            raise ValueError(f"{len(data)} bytes are not rows of Token Recycling")
        magic, count = np.frombuffer(data, "<i4", 2).tolist()
        body = np.frombuffer(data, "<i4", offset=8)
        if magic != _MAGIC or count * width != body.size:
            raise ValueError("the data are not rows of Token Recycling of this version")
        table = body.reshape(-1, width)
        last, runs, ids = table[:, 1], table[:, 2], table[:, 3:]
        # Missing ids of a row come last.
        holes = (ids[:, :-1] < 0) & (ids[:, 1:] >= 0)
        if (
            (table < -1).any()
            or (last < 0).any()
            or (np.delete(table, 2, axis=1) >= vocab_size).any()
            or (runs < 1).any()
            or (runs > LONGEST_RUN).any()
            or (ids[:, :1] < 0).any()
            or holes.any()
        ):
            raise ValueError("a row of Token Recycling has an impossible value")
        ones, twos = dict[int, Best](), dict[tuple[int, int], Best]()
        for a, b, run, *row in reversed(table.tolist()):  # the newest one last
            best = Best([token for token in row if token >= 0], run)
            if a < 0:
                ones[b] = best
            else:
                twos[a, b] = best
        self.after_one, self.after_two = ones, twos


def _packed(end: tuple[int, int], best: Best) -> list[int]:
    ids = best.ids[:RANKS]
    return [*end, best.run, *ids, *(-1,) * (RANKS - len(ids))]


def _put(table: dict[_Key, Best], key: _Key, ids: list[int]) -> None:
    known = table.pop(key, None)
    run = min(known.run + 1, LONGEST_RUN) if known and known.ids[0] == ids[0] else 1
    table[key] = Best(ids, run)
    if len(table) > _MOST:
        del table[next(iter(table))]
