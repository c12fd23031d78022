"""A part of the index: some documents with their suffix array, in RAM or in a file.

A segment never changes. Its file is derived from the documents: it may be deleted at
any time, and one that is damaged can only make proposals wrong, never an answer.

    magic, version, bits of a word, counts, identities of store and tokenizer
    checksum of all before the tokens
    ids of documents          u64  [documents]
    where each begins         u64  [documents], as a position of its last token
    tokens, backwards         u32  [words], most significant byte first
    zeros                     u32  [LONGEST], so that a suffix is never too short
    suffix array              u32  [positions]
    first words of suffixes   u64  [positions / step, rounded up], see `first_words`

step is 1 in small segments, and _STEP in larger ones.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecs.core.files import replacing
from edgecs.core.reading import regular_size
from edgecs.drafters.copies import LONGEST
from edgecs.memory.suffix_array import (
    BYTES,
    FIRST,
    KEY_BITS,
    KEYS,
    WORD,
    backward,
    common,
    first_words,
    sorted_suffixes,
)

_MAGIC = b"edgecs-index\0"
_VERSION = 2
_FIXED = struct.Struct("<13sBHQQQ16s32s")  # up to the checksum
_CHECKSUM = 32
_IDS = np.dtype("<u8")
_POSITIONS = np.dtype("<u4")
_MOST_WORDS = 1 << 31
_PADDING = BYTES * LONGEST
# chosen: more of them hardly change what is proposed, and each takes time.
COUNTED = 16  # occurrences of a match that are counted, on each side of the query
# chosen: a byte for each token. Other steps of a search read a text, and each takes as
# long as ten steps among the first words.
_STEP = 8  # suffixes between those whose first words are stored
# chosen: 4 MiB in a segment. Most searches in small segments find nothing, and then no
# text is read.
_SMALL = 1 << 19  # suffixes of a segment in which the first words of all are stored


class NotASegment(Exception):
    """The file is damaged, or not a segment of this version."""


class Found(NamedTuple):
    """Occurrences of the longest match in a segment: suffixes `first` to `last` - 1."""

    length: int  # tokens
    first: int
    last: int


class Segment:
    """Documents that can be searched.

    store: identity of the store, 16 bytes. tokenizer: identity of the tokenizer, 32
    bytes. ids: of its documents, the oldest first. path: its file; None: it is in RAM.
    """

    def __init__(self, data: bytes | mmap.mmap, path: Path | None = None) -> None:
        """data: as of `encoded`. Raises NotASegment."""
        self.path = path
        try:
            head = _FIXED.unpack_from(data)
        except struct.error as error:
            raise NotASegment("it is too short") from error
        magic, version, bits, *counts, self.store, self.tokenizer = head
        documents, words, positions = counts
        if magic != _MAGIC or version != _VERSION:
            raise NotASegment("it has another version")
        size = _FIXED.size + _CHECKSUM + 16 * documents + 4 * (words + positions)
        self._step = _step(positions)
        size += _PADDING + 8 * -(-positions // self._step)
        possible = max(documents, positions) <= words <= _MOST_WORDS
        if not (possible and 0 < bits <= 8 * BYTES):
            raise NotASegment("its sizes are impossible")
        if len(data) != size:
            raise NotASegment(f"it has {len(data)} bytes instead of {size}")
        at = _FIXED.size + _CHECKSUM
        begin = at + 16 * documents
        if _checksum(data[: _FIXED.size] + data[at:begin]) != data[_FIXED.size : at]:
            raise NotASegment("its checksum is wrong")
        self._data, self._begin, self.bits = data, begin, bits
        self.words: int = words
        self.ids: list[int] = np.frombuffer(data, _IDS, documents, at).tolist()
        starts = np.frombuffer(data, _IDS, documents, at + 8 * documents).tolist()
        self._starts = [-start for start in starts]  # ascending, as `bisect` needs
        tables = memoryview(data)[begin + BYTES * words + _PADDING :]
        self._array = _numbers(tables[: 4 * positions], "I", _POSITIONS)
        self._firsts = _numbers(tables[4 * positions :], "Q", KEYS)

    def find(self, query: bytes, words: int, least: int = 1) -> Found | None:
        """The longest match of a query, as of `query_of`; None: there is none.

        words: its `first_words_of` with the bits of this segment. least: tokens of a
        match that is wanted.
        """
        firsts, array, step = self._firsts, self._array, self._step
        size = len(array)
        low = high = bisect_left(firsts, words)
        if low < len(firsts) and firsts[low] == words:
            high = bisect_right(firsts, words, low)
        elif step == 1:  # the first words of both neighbours are known
            rest = max(0, min(KEY_BITS, FIRST * self.bits) - least * self.bits)
            if (low == size or (firsts[low] ^ words) >> rest) and (
                not low or (firsts[low - 1] ^ words) >> rest
            ):
                return None
        data, begin = self._data, self._begin
        beyond = begin + len(query)

        def text(position: int) -> bytes:
            at = BYTES * position
            return data[begin + at : beyond + at]

        low, high = max(0, (low - 1) * step + 1), min(high * step, size)
        at = bisect_left(array, query, low, high, key=text)
        before = text(array[at - 1]) if at else b""
        behind = text(array[at]) if at < size else b""
        wanted = query[: BYTES * least]
        left = common(before, query) if before.startswith(wanted) else 0
        right = common(behind, query) if behind.startswith(wanted) else 0
        length = max(left, right)
        if length < least:
            return None
        query = query[: BYTES * length]
        beyond = begin + len(query)  # only so much is compared from now on
        first = last = at
        if left == length:
            first -= 1
            if first and text(array[first - 1]) == query:
                least = max(0, at - COUNTED)
                first = bisect_left(array, query, least, first - 1, key=text)
        if right == length:
            last += 1
            if last < size and text(array[last]) == query:
                above, most = query + b"\xff", min(at + COUNTED, size)
                last = bisect_left(array, above, last + 1, most, key=text)
        return Found(length, first, last)

    def newest(self, found: Found, most: int) -> list[int]:
        """Positions of at most `most` of the occurrences, the newest first."""
        return sorted(self._array[found.first : found.last].tolist())[:most]

    def before(self, position: int, k: int) -> bytes:
        """At most k words before a position: what follows the token there, backwards.

        They may go on into another document.
        """
        begin, position = self._begin, min(position, self.words)
        return self._data[
            begin + BYTES * max(0, position - k) : begin + BYTES * position
        ]

    def document(self, position: int) -> int | None:
        """The id of the document that a position is in; None: in none."""
        at = bisect_left(self._starts, -position)
        return self.ids[at] if at < len(self.ids) else None

    def documents(self) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """Ids and tokens of all documents."""
        words = np.frombuffer(self._data, WORD, self.words, self._begin)
        end = self.words
        for number, start in zip(self.ids, self._starts, strict=True):
            first = max(0, -start)
            yield number, words[first:end][::-1].astype(np.int32) - 1
            end = first - 1


def built(
    documents: Sequence[tuple[int, NDArray[np.int32]]],
    *,
    store: bytes,
    tokenizer: bytes,
) -> Segment:
    """A segment in RAM of documents, as ids and tokens."""
    return Segment(encoded(documents, store=store, tokenizer=tokenizer))


def encoded(
    documents: Sequence[tuple[int, NDArray[np.int32]]],
    *,
    store: bytes,
    tokenizer: bytes,
) -> bytes:
    """The bytes of a segment, which are also those of its file."""
    words = backward([tokens for _, tokens in documents])
    array = sorted_suffixes(words)
    starts, at = [], words.size
    for _, tokens in documents:
        at -= len(tokens)
        starts.append(at)
        at -= 1
    bits = max(1, int(words.max(initial=0)).bit_length())
    counts = len(starts), words.size, array.size
    head = _FIXED.pack(_MAGIC, _VERSION, bits, *counts, store, tokenizer)
    ids = np.array([number for number, _ in documents], _IDS).tobytes()
    table = ids + np.array(starts, _IDS).tobytes()
    return b"".join(
        (
            head,
            _checksum(head + table),
            table,
            words.astype(WORD).tobytes(),
            bytes(_PADDING),
            array.astype(_POSITIONS).tobytes(),
            first_words(words, array[:: _step(array.size)], bits).tobytes(),
        )
    )


def written(path: Path, data: bytes) -> Segment:
    """Writes a segment to a file that appears when it is complete. Raises OSError."""
    with replacing(path, private=True) as file:
        file.write(data)
    return opened(path)


def opened(path: Path) -> Segment:
    """A segment of a file, memory-mapped. Raises OSError, NotASegment."""
    if regular_size(path) < _FIXED.size:
        raise NotASegment("it is too short")
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # it has become empty
            raise NotASegment("it is empty") from error
    return Segment(data, path)


def _step(positions: int) -> int:
    return 1 if positions <= _SMALL else _STEP


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _numbers(
    data: memoryview, code: Literal["I", "Q"], stored: np.dtype[Any]
) -> memoryview[int]:
    """Stored numbers; in RAM on a machine with the most significant byte first."""
    if sys.byteorder == "little":
        return data.cast(code)
    native = np.frombuffer(data, stored).astype(stored.newbyteorder("="))
    return memoryview(native.tobytes()).cast(code)
