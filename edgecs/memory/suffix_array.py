"""Texts sorted by what precedes each token, so that one search finds a longest match.

A drafter asks where the *end* of a text occurred before. So texts are stored backwards:
the end of the query is then a prefix, and the suffixes of the backward text that begin
like it are neighbours in a suffix array (Manber and Myers, 1993). One binary search
finds the place of the query, and the longest match is next to it.

The array is sorted by LONGEST tokens only. Ranks of h tokens give those of 2h (prefix
doubling), and only suffixes that are still equal are sorted again.

Words are 32-bit: 0 separates documents, token t is t + 1. Stored with the most
significant byte first, they compare as bytes as they compare as numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgecs.drafters.copies import LONGEST

WORD = np.dtype(">u4")
BYTES = WORD.itemsize
_SEPARATOR = 0
_WORD_BITS = 8 * BYTES - 1  # of a number of bits: its place in a word
_PACKED = 3  # words in the first key
_BITS = 21  # of each; real vocabularies have fewer than two million tokens
FIRST = 4  # most words in a number of `first_words`
KEY_BITS = 64  # of such a number, at most
KEYS = np.dtype("<u8")
_FIRST_OF = struct.Struct(f">{FIRST}I").unpack_from
_ZEROS = bytes(BYTES * FIRST)
_PACKS = [struct.Struct(f">{n}I").pack for n in range(LONGEST + 1)]


def backward(documents: Sequence[NDArray[np.int32]]) -> NDArray[np.uint32]:
    """The documents as words, the last token of the last document first.

    [0, tokens of the last document backwards, 0, ..., tokens of the first]. Tokens are
    from 0 to 2**31 - 2.
    """
    words = np.zeros(sum(len(one) + 1 for one in documents), dtype=np.uint32)
    at = words.size
    for tokens in documents:
        words[at - len(tokens) : at] = tokens[::-1].astype(np.uint32) + 1
        at -= len(tokens) + 1
    return words


def sorted_suffixes(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Positions of tokens that something follows, sorted by LONGEST words from each.

    words: [n], as of `backward`, so what follows is the word before. Equal ones are in
    any order. O(n log n) time, about 30 bytes of memory a word.
    """
    n = words.size
    if not n:
        return np.empty(0, dtype=np.uint32)
    sizes = _PACKED if int(words.max()) >> _BITS == 0 else 1
    keys = np.zeros(n, dtype=np.uint64)
    for i in range(sizes):
        keys <<= np.uint64(_BITS)
        keys[: n - i] |= words[i:].astype(np.uint64)
    order = np.argsort(keys).astype(np.uint32)
    places = np.arange(n, dtype=np.uint32)
    ranks = np.zeros(n + 1, dtype=np.uint32)  # [n]: beyond the end, the smallest
    places = _rank(keys[order], order, places, ranks)
    done = sizes
    while done < LONGEST and places.size:
        equal = order[places]
        beyond = np.minimum(equal.astype(np.int64) + done, n)
        keys = ranks[equal].astype(np.uint64) << np.uint64(32) | ranks[beyond]
        sort = np.argsort(keys)
        order[places] = equal[sort]
        places = _rank(keys[sort], order[places], places, ranks)
        done *= 2
    follows = np.zeros(n, dtype=bool)
    follows[1:] = words[:-1] != _SEPARATOR
    kept: NDArray[np.uint32] = order[follows[order] & (words[order] != _SEPARATOR)]
    return kept


def _rank(
    keys: NDArray[np.uint64],
    suffixes: NDArray[np.uint32],
    places: NDArray[np.uint32],
    ranks: NDArray[np.uint32],
) -> NDArray[np.uint32]:
    """Gives each suffix the place of the first one with its key, plus one.

    keys: sorted, [m], those of `suffixes`, which are at `places` of the array. Returns
    the places of suffixes whose key is not unique.
    """
    first = np.ones(keys.size, dtype=bool)
    first[1:] = keys[1:] != keys[:-1]
    starts = np.flatnonzero(first)
    groups = np.cumsum(first) - 1
    ranks[suffixes] = places[starts][groups] + np.uint32(1)
    unique = first.copy()
    unique[:-1] &= first[1:]
    return places[~unique]


def first_words(
    words: NDArray[np.uint32], at: NDArray[np.uint32], bits: int
) -> NDArray[np.uint64]:
    """The first words of some suffixes as numbers, uint64, in the order of these.

    words: [n], as of `backward`. at: [m], positions. bits: of the largest word. The
    numbers are the first KEY_BITS of up to four words, so close suffixes share one.
    """
    few = np.append(words, np.zeros(FIRST, np.uint32)).astype(np.uint64)
    found = np.zeros(at.size, dtype=np.uint64)
    room = KEY_BITS
    for i in range(FIRST):
        taken = min(bits, room)
        found <<= np.uint64(taken)
        found |= few[at.astype(np.int64) + i] >> np.uint64(bits - taken)
        room -= taken
    return found.astype(KEYS)


def first_words_of(query: bytes, bits: int) -> int:
    """The number of `first_words` for a query, as of `query_of`.

    With a word of more bits it is not below that of any suffix that is smaller.
    """
    words = _FIRST_OF(query if len(query) >= BYTES * FIRST else query + _ZEROS)
    if max(words) >> bits:
        large = next(i for i, word in enumerate(words) if word >> bits)
        words = (*words[:large], *((1 << bits) - 1,) * (FIRST - large))
    a, b, c, d = words
    found = int(((a << bits | b) << bits | c) << bits | d)
    return found >> max(0, FIRST * bits - KEY_BITS)


def query_of(end: Sequence[int]) -> bytes:
    """The last tokens of a text as it is looked up, backwards; at most LONGEST."""
    last = [token + 1 for token in end[: -LONGEST - 1 : -1]]
    return _PACKS[len(last)](*last)


def common(one: bytes, other: bytes) -> int:
    """The number of words that two texts have in common from their start on."""
    if one == other:
        return len(one) // BYTES
    size = min(len(one), len(other))
    differs = int.from_bytes(one[:size]) ^ int.from_bytes(other[:size])
    return (8 * size - differs.bit_length()) // (8 * BYTES)


def most_frequent(texts: Sequence[bytes]) -> tuple[bytes, int]:
    """The backward text that most have in common, word by word from the end on.

    texts: at least one, the newest first, which counts where others are as frequent.
    Returns it and how many have its last word. A word of 0 ends a text.
    """
    if len(texts) == 1:
        return texts[0], 1
    # As numbers: the last word of a text has the lowest bits.
    rest = [(int.from_bytes(text), text) for text in texts]
    agreeing = len(rest)
    while len(rest) > 1:
        first = rest[0][0]
        differs = 0
        for value, _ in rest:
            differs |= value ^ first
        if not differs:
            break
        shift = (differs & -differs).bit_length() - 1 & ~_WORD_BITS
        groups = dict[int, list[tuple[int, bytes]]]()
        for one in rest:
            if word := one[0] >> shift & 0xFFFFFFFF:
                groups.setdefault(word, []).append(one)
        if not groups:
            break
        rest = max(groups.values(), key=len)
        if not shift:
            agreeing = len(rest)
        if _ends(first, shift):
            break
    return rest[0][1], agreeing


def _ends(text: int, bits: int) -> bool:
    """Whether a word of 0 is among the last words of a text."""
    return any(not text >> at & 0xFFFFFFFF for at in range(0, bits, 8 * BYTES))
