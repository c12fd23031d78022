"""Cost of looking texts up in a memory, against other ways to keep them.

    python -m edgecs_bench.memory_lookups [--tokens 1000000,10000000] [--result FILE]

The texts are the Python sources that this interpreter has (its library and installed
packages), tokenised by a model's tokenizer. One file in 50 is left out. Half of the
queries are ends of texts in the files that were left out, half in those that are
stored. Every store is asked for the longest match of at most 32 tokens, and for 16
tokens that followed. Stores:

suffix array: the one of `edgecs.memory`, as it is after texts were added one by one.
sqlite: the positions of each three tokens as rows of a SQLite table; the newest 32 are
compared with the text, as Max-Gram does.
lmdb: the same in LMDB, as duplicates of a key (left out if it is not installed).
dictionary: the index of Max-Gram, in the RAM of each process, made at its start.

All queries are asked in five passes, and of each the fastest time counts: CPU time of
the thread, so that other programs change it little. Pages of files are in the cache of
the system. The last line is JSON.
"""

from __future__ import annotations

import gc
import json
import platform
import sqlite3
import struct
import sysconfig
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import click
import numpy as np
from numpy.typing import NDArray

from edgecs.core.files import write_whole
from edgecs.drafters.copies import GRAM, LONGEST
from edgecs.drafters.maxgram import CANDIDATES, MaxGram
from edgecs.engines.load_options import LoadOptions
from edgecs.memory import store as user_store
from edgecs.memory.index import Index
from edgecs.memory.store import UserStore
from edgecs.runtime.folders import Folders
from edgecs.runtime.loader import load
from edgecs_bench.text_tables import markdown

Tokens = NDArray[np.int32]
_UNSEEN = 50  # one file of so many is not stored
_QUERIES = 4000
_PASSES = 5
_FOLLOWING = 16  # tokens that are asked for
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
        match = self._store.match(end, _FOLLOWING)
        return Found(match.length, match.tokens) if match else Found(0, [])

    def size(self) -> int:
        """See `Store`."""
        return _bytes_of(self._folder / "index")


class _Grams:
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

    def positions(self, key: int) -> list[int]:
        """The newest positions of a key, at most CANDIDATES."""
        raise NotImplementedError

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
        follows = self._words[place + 1 : place + 1 + _FOLLOWING].tolist()
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
        follows = mag._ids[at + 1 : at + 1 + _FOLLOWING]
        follows = follows.tolist() if isinstance(follows, array) else list(follows)
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


def sources() -> Iterator[Path]:
    """Python files of this interpreter, in an order that mixes packages."""
    paths = dict.fromkeys(sysconfig.get_paths()[n] for n in ("stdlib", "purelib"))
    files = [file for path in paths for file in Path(path).rglob("*.py")]
    unique = sorted({file.resolve() for file in files if file.is_file()})
    random = np.random.default_rng(0)
    for at in random.permutation(len(unique)):
        yield unique[at]


def read_texts(model: Path, most: int) -> tuple[list[Tokens], list[Tokens]]:
    """Files as tokens, `most` at least if there are so many; and those left out."""
    stored, unseen, total = list[Tokens](), list[Tokens](), 0
    with load(model, LoadOptions(n_ctx=64, kernels="llama")) as loaded:
        vocabulary = loaded.model.vocabulary
        for number, file in enumerate(sources()):
            text = file.read_text("utf-8", "replace")[: 1 << 20]
            tokens = vocabulary.encode(text, document=False, special=False)
            if tokens.size < 2 * LONGEST:
                continue
            if number % _UNSEEN == 0:
                unseen.append(tokens)
                continue
            stored.append(tokens)
            total += tokens.size
            if total >= most:
                break
    return stored, unseen


def queries(stored: Sequence[Tokens], unseen: Sequence[Tokens]) -> list[list[int]]:
    """Ends of texts, in turn of those that are stored and those that are not."""
    random, found = np.random.default_rng(1), list[list[int]]()
    for number in range(_QUERIES):
        texts = (stored, unseen)[number % 2]
        text = texts[int(random.integers(len(texts)))]
        at = int(random.integers(LONGEST, text.size))
        found.append(text[at - LONGEST : at].tolist())
    return found


def measured(
    name: str, texts: Sequence[Tokens], asked: Sequence[list[int]]
) -> tuple[dict[str, Any], list[int]]:
    """One store: its costs, and the lengths of its matches."""
    count = sum(text.size for text in texts)
    with tempfile.TemporaryDirectory() as folder:
        gc.collect()
        began, cpu = time.perf_counter(), time.process_time()
        store = STORES[name](Path(folder), texts)
        built, cpu = time.perf_counter() - began, time.process_time() - cpu
        spans = np.empty((_PASSES, len(asked)), dtype=np.int64)
        lengths = [store.match(end).length for end in asked]
        for row in spans:
            for number, end in enumerate(asked):
                start = time.thread_time_ns()
                store.match(end)
                row[number] = time.thread_time_ns() - start
        least = spans.min(axis=0)
        found = {
            "store": name,
            "tokens": count,
            "lookup_us": _microseconds(least),
            "stored_us": _microseconds(least[::2]),
            "unseen_us": _microseconds(least[1::2]),
            "build_seconds": round(built, 2),
            "build_cpu_seconds": round(cpu, 2),
            "bytes_per_token": round(store.size() / count, 1),
        }
        if isinstance(store, SuffixArray):
            found["segments"] = [one.words for one in store.segments]
    return found, lengths


def _microseconds(spans: NDArray[np.int64]) -> dict[str, float]:
    values = np.percentile(spans, [50, 99]) / 1000
    return {"median": round(values[0], 1), "p99": round(values[1], 1)}


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _resident() -> int:
    import psutil

    gc.collect()
    return int(psutil.Process().memory_info().rss)


@click.command()
@click.option("--tokens", "sizes", default="1000000,10000000", show_default=True)
@click.option("-m", "--model", default="smollm2-135m-instruct", show_default=True)
@click.option("--store", "names", multiple=True, type=click.Choice(list(STORES)))
@click.option("--result", type=click.Path(path_type=Path))
def main(sizes: str, model: str, names: tuple[str, ...], result: Path | None) -> None:
    """Measures lookups in stores of several sizes."""
    wanted = [int(size) for size in sizes.split(",")]
    stored, unseen = read_texts(Folders(offline=True).store.path(model), max(wanted))
    rows = list[dict[str, Any]]()
    about = {
        "format": "edgecs-memory-lookups",
        "cpu": _cpu(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "model": model,
        "queries": _QUERIES,
        "looked_at": user_store.LOOKED_AT,
        "rows": rows,
    }
    for size in wanted:
        texts, total = list[Tokens](), 0
        for text in stored:
            if total >= size:
                break
            texts.append(text)
            total += text.size
        asked = queries(texts, unseen)
        exact = list[int]()
        for name in names or STORES:
            try:
                row, lengths = measured(name, texts, asked)
            except ImportError:
                click.echo(f"{name} is not installed: left out", err=True)
                continue
            exact = exact or lengths
            pairs = zip(lengths, exact, strict=True)
            same = np.mean([a == b for a, b in pairs if b >= GRAM])
            row["longest"] = round(float(same), 4)
            rows.append(row)
            click.echo(_line(row))
            if result:
                write_whole(result, f"{json.dumps(about, indent=1)}\n".encode())
    click.echo(json.dumps(about))


def markdown_of(result: dict[str, Any]) -> str:
    """The table of a result, in Markdown."""
    heads = ("tokens", "store", "lookup, median", "p99", "built in", "bytes a token")
    rows = [
        (
            f"{row['tokens'] / 1e6:.1f} M",
            row["store"],
            f"{row['lookup_us']['median']:.0f} µs",
            f"{row['lookup_us']['p99']:.0f} µs",
            f"{row['build_cpu_seconds']:.0f} s",
            row["bytes_per_token"],
            f"{row['longest']:.0%}",
        )
        for row in result["rows"]
    ]
    return markdown([(*heads, "longest match found"), *rows])


def _line(row: dict[str, Any]) -> str:
    spans = row["lookup_us"]
    cells = (
        f"{row['tokens'] / 1e6:.1f} M tokens, {row['store']}",
        f"{spans['median']} us, p99 {spans['p99']} us",
        f"built in {row['build_cpu_seconds']} s",
        f"{row['bytes_per_token']} bytes a token",
        f"longest match in {row['longest']:.1%}",
    )
    return " · ".join(cells)


def _cpu() -> str:
    from edgecs.engines.host import cpu_name

    return cpu_name()


if __name__ == "__main__":
    main()
