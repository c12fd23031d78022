"""A part of the index: some documents with their suffix array, in RAM or in a file.

A segment never changes. Its file is derived from the documents: it may be deleted at
any time, and one that is damaged can only make proposals wrong, never an answer.

    magic, version, counts, identities of store and tokenizer
    checksum of all before the tokens
    ids of documents          u64  [documents]
    where each begins         u64  [documents], as a position of its last token
    tokens, backwards         u32  [words], most significant byte first
    zeros                     u32  [LONGEST], so that a suffix is never too short
    suffix array              u32  [positions]
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecs.core.files import replacing
from edgecs.core.reading import regular_size
from edgecs.drafters.copies import LONGEST
from edgecs.memory.suffix_array import BYTES, WORD, backward, common, sorted_suffixes

_MAGIC = b"edgecs-index\0"
_VERSION = 1
_FIXED = struct.Struct("<13sBHQQQ16s32s")  # up to the checksum
_CHECKSUM = 32
_IDS = np.dtype("<u8")
_POSITIONS = np.dtype("<u4")
_MOST_WORDS = 1 << 31
_PADDING = BYTES * LONGEST
# chosen: more of them hardly change what is proposed, and each takes time.
COUNTED = 64  # occurrences of a match that are counted, on each side of the query
_FEW = 4  # occurrences on a side up to which they are looked at one by one
# chosen: half of a search is then in a list, whose steps cost a tenth.
_STEP = 512  # suffixes between those that are kept in RAM


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
        magic, version, _, documents, words, positions, self.store, self.tokenizer = (
            head
        )
        if magic != _MAGIC or version != _VERSION:
            raise NotASegment("it has another version")
        size = _FIXED.size + _CHECKSUM + 16 * documents + 4 * (words + positions)
        size += _PADDING
        if max(documents, positions) > words or words > _MOST_WORDS:
            raise NotASegment("its sizes are impossible")
        if len(data) != size:
            raise NotASegment(f"it has {len(data)} bytes instead of {size}")
        at = _FIXED.size + _CHECKSUM
        begin = at + 16 * documents
        if _checksum(data[: _FIXED.size] + data[at:begin]) != data[_FIXED.size : at]:
            raise NotASegment("its checksum is wrong")
        self._data, self._begin = data, begin
        self.words: int = words
        self.ids: list[int] = np.frombuffer(data, _IDS, documents, at).tolist()
        starts = np.frombuffer(data, _IDS, documents, at + 8 * documents).tolist()
        self._starts = [-start for start in starts]  # ascending, as `bisect` needs
        array = memoryview(data)[begin + BYTES * words + _PADDING :]
        self._array = array.cast("I") if sys.byteorder == "little" else _swapped(array)
        places = (begin + BYTES * at for at in self._array[_STEP::_STEP].tolist())
        self._steps = [data[at : at + _PADDING] for at in places]

    def find(self, query: bytes, least: int = 1) -> Found | None:
        """The longest match of a query, as of `query_of`; None: there is none.

        least: tokens of a match that is wanted.
        """
        data, begin = self._data, self._begin
        array, beyond = self._array, begin + len(query)

        def text(position: int) -> bytes:
            at = BYTES * position
            return data[begin + at : beyond + at]

        # The suffixes of `steps` before this one are smaller, the others are not.
        low = bisect_left(self._steps, query) * _STEP
        high = min(low + _STEP, len(array))
        at = bisect_left(array, query, low, high, key=text)
        length = 0
        for near in range(max(0, at - 1), min(at + 1, len(array))):
            length = max(length, common(text(array[near]), query))
        if length < least:
            return None
        query = query[: BYTES * length]
        beyond = begin + len(query)  # only so much is compared from now on
        first = last = at
        while first > max(0, at - COUNTED) and text(array[first - 1]) == query:
            first -= 1
            if at - first == _FEW:
                least = max(0, at - COUNTED)
                first = bisect_left(array, query, least, first, key=text)
                break
        while last < min(len(array), at + COUNTED) and text(array[last]) == query:
            last += 1
            if last - at == _FEW:
                above, most = query + b"\xff", min(len(array), at + COUNTED)
                last = bisect_left(array, above, last, most, key=text)
                break
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
    head = _FIXED.pack(
        _MAGIC, _VERSION, 0, len(starts), words.size, array.size, store, tokenizer
    )
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


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _swapped(array: memoryview) -> memoryview:
    """The array on a machine with the most significant byte first, in RAM."""
    native = np.frombuffer(array, _POSITIONS).astype(np.uint32)
    return memoryview(native.tobytes()).cast("I")
