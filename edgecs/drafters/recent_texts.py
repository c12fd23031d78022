"""The texts of this process, across conversations: a bounded corpus in RAM.

An index of hash chains over a ring buffer, as in the search for matches of DEFLATE
(RFC 1951, section 4): the newest position of every hash of GRAM tokens, and for every
position the one before it with the same hash. A new text overwrites the oldest ones,
whose positions are then recognised as too old, so nothing has to be deleted.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Tokens
from edgecs.drafters.copies import GRAM, LONGEST
from edgecs.drafters.corpus import Match

# chosen: some hundred answers, or a book, in 5 MiB of RAM.
ROOM = 1 << 18  # tokens; a power of two
# chosen: limits the time of a lookup in repetitive texts, as in Max-Gram.
CANDIDATES = 16  # occurrences of the last GRAM tokens that are compared, newest first

_END = -1  # separates texts; not a token
# chosen: odd numbers without a pattern in their bits, so that close ids differ.
_FACTORS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)


class RecentTexts:
    """Texts, the newest of which are kept.

    room: tokens that are kept, a power of two; of a longer text only the end is kept.
    With L the length of the longest match, the result is that of an exhaustive search
    if L occurs among the newest CANDIDATES occurrences of the last GRAM tokens.

    >>> texts = RecentTexts(16)
    >>> texts.add([1, 2, 3, 4, 5])
    >>> texts.match([9, 1, 2, 3], 2)
    Match(length=3, times=1, agreeing=1, tokens=[4, 5])
    """

    def __init__(self, room: int = ROOM) -> None:
        if room < 2 * GRAM or room & (room - 1):
            raise ValueError(f"the room must be a power of two from 8 on, got {room}")
        self._mask = room - 1
        # Pages of these arrays take memory when they are first written.
        ids = np.zeros(room, dtype=np.int32)
        newest, before = np.zeros(room, np.int64), np.zeros(room, np.int64)
        self._arrays = ids, newest, before
        # Single elements of a memoryview are read several times as fast.
        self._ids: memoryview[int] = memoryview(ids)  # type: ignore[arg-type]
        self._newest: memoryview[int] = memoryview(newest)  # type: ignore[arg-type]
        self._before: memoryview[int] = memoryview(before)  # type: ignore[arg-type]
        # Positions grow for ever, and `& _mask` is their place. They begin here so
        # that 0, which the arrays are full of, is too old.
        self._next = room

    def add(self, tokens: Sequence[int] | Tokens) -> None:
        """Add a text."""
        room = self._mask + 1
        new = np.asarray(tokens, dtype=np.int32)[-(room - 1) :]
        size = new.size
        if size <= GRAM:  # nothing follows a gram
            return
        ids, newest, before = self._arrays
        at = self._next & self._mask
        if at + size >= room:  # a text does not go round the end of the buffer
            self._next += room - at
            at = 0
        ids[at : at + size] = new
        ids[at + size] = _END
        # Grams with a successor, by the position of their last token.
        hashes = _hashes(new[:-1], self._mask)
        places = np.arange(self._next + GRAM - 1, self._next + size - 1)
        self._next += size + 1
        order = hashes.argsort(kind="stable")
        hashes, places = hashes[order], places[order]
        first = np.ones(hashes.size, dtype=np.bool_)
        first[1:] = hashes[1:] != hashes[:-1]
        earlier = np.empty_like(places)
        earlier[1:] = places[:-1]
        earlier[first] = newest[hashes[first]]
        before[places & self._mask] = earlier
        newest[hashes] = places  # of equal ones the last, which is the newest

    def match(self, end: Sequence[int], k: int) -> Match | None:
        """The longest match of at least GRAM tokens, see `Corpus`."""
        if len(end) < GRAM or k <= 0:
            return None
        a, b, c = end[-GRAM:]
        x, y, z = _FACTORS
        ids, before, mask = self._ids, self._before, self._mask
        at = self._newest[((a * x ^ b * y ^ c * z) >> 8) & mask]
        oldest = self._next - mask - 1
        if at <= oldest:
            return None
        wanted = memoryview(array("i", end[-LONGEST:]))
        limit, length, found = len(wanted), GRAM, list[int]()
        for _ in range(CANDIDATES):
            if at <= oldest:
                break
            place = at & mask
            if ids[max(0, place + 1 - length) : place + 1] == wanted[-length:]:
                n, most = length, min(limit, place + 1)
                while n < most and ids[place - n] == wanted[-1 - n]:
                    n += 1
                if n > length:
                    length, found = n, []
                found.append(place)
            at = before[place]
        return self._best(length, found, k) if found else None

    def _best(self, length: int, found: list[int], k: int) -> Match:
        """The most frequent continuation of matches, which are the newest first."""
        ids = self._ids
        said = [ids[place + 1] for place in found]
        token = max(said, key=said.count)  # of equally frequent ones the first
        start = found[said.index(token)] + 1
        tokens = ids[start : start + k].tolist()
        if _END in tokens:
            tokens = tokens[: tokens.index(_END)]
        return Match(length, len(found), said.count(token), tokens)


def _hashes(ids: Tokens, mask: int) -> NDArray[np.int64]:
    """The hash of every GRAM tokens in a row."""
    a, b, c = (ids[i : ids.size - GRAM + 1 + i].astype(np.int64) for i in range(GRAM))
    x, y, z = _FACTORS
    return np.asarray(((a * x ^ b * y ^ c * z) >> 8) & mask)
