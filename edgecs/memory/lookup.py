"""The longest match in several segments, and what followed it most often."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from edgecs.drafters.corpus import Match
from edgecs.memory.segment import COUNTED, Found, Segment
from edgecs.memory.suffix_array import BYTES, first_words_of, most_frequent, query_of

# chosen: a match of one token is hardly ever right.
SHORTEST = 2  # tokens of a match that is returned
# chosen: more of them cost time and seldom change the majority.
LOOKED_AT = 8  # occurrences whose continuations are compared


class Hit(NamedTuple):
    """A match, and its newest occurrence."""

    match: Match
    segment: Segment
    position: int


def looked_up(
    segments: Sequence[Segment], end: Sequence[int], k: int, vocab_size: int
) -> Hit | None:
    """The longest match of the end of a text, see `Corpus`; None: there is none.

    segments: the largest first. vocab_size: a continuation ends before larger ids.
    """
    if k <= 0 or not end:
        return None
    query, length, bits, words = query_of(end), SHORTEST, 0, 0
    found = list[tuple[Segment, Found]]()
    for segment in segments:
        if segment.bits != bits:
            bits = segment.bits
            words = first_words_of(query, bits)
        hit = segment.find(query, words, length)
        if hit is not None:
            if hit.length > length:
                found, length = [], hit.length
            found.append((segment, hit))
    times, places = 0, list[tuple[Segment, int]]()
    for segment, hit in reversed(found):  # the smallest segments are the newest
        times += hit.last - hit.first
        if more := LOOKED_AT - len(places):
            places += [(segment, at) for at in segment.newest(hit, more)]
    if not places:
        return None
    texts = [segment.before(at, k) for segment, at in places]
    text, agreeing = most_frequent(texts)
    tokens = _valid(text, vocab_size)
    if not tokens:
        return None
    match = Match(length, min(times, COUNTED), agreeing, tokens)
    return Hit(match, *places[0])


def _valid(text: bytes, vocab_size: int) -> list[int]:
    """Words before a match as the tokens after it, up to the document's end."""
    words = struct.unpack(f">{len(text) // BYTES}I", text)
    if words and min(words) > 0 and max(words) <= vocab_size:  # most texts
        return [word - 1 for word in reversed(words)]
    tokens = list[int]()
    for word in reversed(words):
        if not 0 < word <= vocab_size:  # a larger one: a damaged file
            break
        tokens.append(word - 1)
    return tokens
