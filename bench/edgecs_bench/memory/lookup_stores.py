"""Ways to keep texts that are looked up, for `edgecs_bench.memory_lookups`.

suffix array: that of `edgecs.memory`, as it is after texts were added one by one.
sqlite: the positions of each three tokens as rows of a SQLite table; the newest 32 are
compared with the text, as Max-Gram does. lmdb: the same in LMDB, as duplicates of a
key. dictionary: the index of Max-Gram, in the RAM of each process, made at its start.
"""

from __future__ import annotations

import gc
import sqlite3
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgecs.drafters.copies import GRAM, LONGEST
from edgecs.drafters.maxgram import CANDIDATES, MaxGram
from edgecs.memory.index import Index
from edgecs.memory.store import UserStore

Tokens = NDArray[np.int32]
FOLLOWING = 16  # tokens that are asked for
_TOKENIZER = "00" * 32


class Found(NamedTuple):
    """A match: its length, and what followed."""

    length: int
    tokens: list[int]


class Store(Protocol):
    """A way to keep texts."""

    def match(self, end: list[int]) -> Found:
        """The longest match of the end of a text."""

    def size(self) -> int:
        """Bytes on the disk, or in RAM if it has no file."""


class SuffixArray:
    """The store of edgecs. Only its index is measured: SQLite keeps the texts."""

    def __init__(self, folder: Path, texts: Sequence[Tokens]) -> None:
        self._folder = folder
        index = Index(folder, store=b"0" * 16, tokenizer=b"0" * 32, writes=True)
        for number, tokens in enumerate(texts):
            index.add([(number + 1, tokens)])
        self.segments = index.segments
        self._store = UserStore(folder / "user", _TOKENIZER, 1 << 20)
        self._store._index = index

    def match(self, end: list[int]) -> Found:
        """See `Store`."""
        match = self._store.match(end, FOLLOWING)
        return Found(match.length, match.tokens) if match else Found(0, [])

    def size(self) -> int:
        """See `Store`."""
        return _bytes_of(self._folder / "index")


class _Grams(ABC):
    """Texts whose positions are found by their last three tokens."""

    def __init__(self, folder: Path, texts: Sequence[Tokens]) -> None:
        ends = [np.append(tokens, -1).astype(np.int32) for tokens in texts]
        self._path = folder / "tokens"
        np.concatenate(ends).tofile(self._path)
        self._words = np.memmap(self._path, np.int32, "r")

    def _sorted(self) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """The key of each position that something follows, and it, sorted by both."""
        words = np.asarray(self._words).astype(np.int64)
        keys = (words[:-3] << 42) | (words[1:-2] << 21) | words[2:-1]
        whole = (words[:-3] >= 0) & (words[1:-2] >= 0) & (words[2:-1] >= 0)
        whole &= words[3:] >= 0
        at = np.flatnonzero(whole)
        order = np.argsort(keys[at], kind="stable")
        return keys[at][order].astype(np.uint64), (at[order] + 2).astype(np.uint32)

    @abstractmethod
    def positions(self, key: int) -> list[int]:
        """The newest positions of a key, at most CANDIDATES."""

    def match(self, end: list[int]) -> Found:
        """See `Store`."""
        if len(end) < GRAM:
            return Found(0, [])
        a, b, c = end[-GRAM:]
        best, place, last = 0, -1, end[-LONGEST:]
        for at in self.positions((a << 42) | (b << 21) | c):
            there = self._words[max(0, at + 1 - len(last)) : at + 1].tolist()
            length = 0
            while length < len(there) and there[-1 - length] == last[-1 - length]:
                length += 1
            if length > best:
                best, place = length, at
        if not best:
            return Found(0, [])
        follows = self._words[place + 1 : place + 1 + FOLLOWING].tolist()
        return Found(best, follows[: follows.index(-1)] if -1 in follows else follows)


class SQLite(_Grams):
    """Rows of a table that is sorted by key and position."""

    def __init__(self, folder: Path, texts: Sequence[Tokens]) -> None:
        super().__init__(folder, texts)
        self._file = folder / "grams.db"
        self._db = sqlite3.connect(self._file, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(
            "CREATE TABLE grams (key INTEGER, position INTEGER, "
            "PRIMARY KEY (key, position)) WITHOUT ROWID"
        )
        keys, positions = self._sorted()
        self._db.execute("BEGIN")
        pairs = zip(keys.tolist(), positions.tolist(), strict=True)
        self._db.executemany("INSERT INTO grams VALUES (?, ?)", pairs)
        self._db.execute("COMMIT")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def positions(self, key: int) -> list[int]:
        """See `_Grams`."""
        rows = self._db.execute(
            "SELECT position FROM grams WHERE key = ? ORDER BY position DESC LIMIT ?",
            (key, CANDIDATES),
        )
        return [position for (position,) in rows]

    def size(self) -> int:
        """See `Store`."""
        return self._file.stat().st_size + self._path.stat().st_size


class LMDB(_Grams):
    """Sorted duplicates of a key."""

    def __init__(self, folder: Path, texts: Sequence[Tokens]) -> None:
        import lmdb

        super().__init__(folder, texts)
        self._file = folder / "lmdb"
        self._env = lmdb.open(str(self._file), map_size=4 << 30, max_dbs=1)
        self._table = self._env.open_db(b"grams", dupsort=True, dupfixed=True)
        keys, positions = self._sorted()
        pack = struct.Struct(">Q").pack
        place = struct.Struct(">I").pack
        with self._env.begin(write=True, db=self._table) as writing:
            pairs = zip(keys.tolist(), positions.tolist(), strict=True)
            cursor = writing.cursor()
            cursor.putmulti(((pack(k), place(p)) for k, p in pairs), append=True)
        self._reading = self._env.begin(db=self._table, buffers=False)

    def positions(self, key: int) -> list[int]:
        """See `_Grams`."""
        cursor = self._reading.cursor()
        found = list[int]()
        if cursor.set_key(key.to_bytes(8)) and cursor.last_dup():
            found.append(int.from_bytes(cursor.value()))
            while len(found) < CANDIDATES and cursor.prev_dup():
                found.append(int.from_bytes(cursor.value()))
        return found

    def size(self) -> int:
        """See `Store`."""
        used = self._env.info()["last_pgno"] * self._env.stat()["psize"]
        return int(used) + self._path.stat().st_size


class Dictionary:
    """Max-Gram over one long text of all documents."""

    def __init__(self, folder: Path, texts: Sequence[Tokens]) -> None:
        before = _resident()
        self._mag = MaxGram(min_match=2)
        self._mag.commit([t for text in texts for t in [*text.tolist(), -1]])
        self._size = _resident() - before

    def match(self, end: list[int]) -> Found:
        """See `Store`."""
        mag = self._mag
        at = mag._find(end[-LONGEST:])
        if at is None:
            return Found(0, [])
        follows = mag._ids[at + 1 : at + 1 + FOLLOWING]
        cut = follows[: follows.index(-1)] if -1 in follows else follows
        return Found(mag._matched, cut)

    def size(self) -> int:
        """See `Store`."""
        return self._size


STORES: dict[str, Any] = {
    "suffix array": SuffixArray,
    "sqlite": SQLite,
    "lmdb": LMDB,
    "dictionary": Dictionary,
}


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _resident() -> int:
    import psutil

    gc.collect()
    return int(psutil.Process().memory_info().rss)
