"""The table of Token Recycling in a file, so that it outlives a process.

Which tokens followed which ones shows what was said, so a table is as private as the
answers: it is kept where the user lets answers be kept, and is theirs to delete.

    magic, version, ranks, vocabulary size, counts, identity of the tokenizer
    keys of one token         i32  [one]
    keys of two tokens        i32  [two, 2]
    runs                      u8   [one + two]
    ids in each row           u8   [one + two]
    ids, the best first       i32  [one + two, ranks]
    checksum of all before

A table costs nothing to learn again, and nobody can do anything about one that is
damaged, of another tokenizer or of another version. So such a file counts as empty, and
is replaced.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import Timeout
from numpy.typing import NDArray

from edgecs.core.files import sweep, write_whole
from edgecs.core.reading import read_bounded
from edgecs.drafters.recycling_table import (
    LONGEST_RUN,
    MOST,
    RANKS,
    Best,
    BestRows,
    RecyclingTable,
)
from edgecs.memory.model_files import Identity, lock_of, make_folder, path_of

_MAGIC = b"edgecs-recycled\0"
_VERSION = 1
_FIXED = struct.Struct("<16sHHIII32s")
_CHECKSUM = 32
_ID = np.dtype("<i4")
LARGEST = _FIXED.size + _CHECKSUM + MOST * (4 + 8) + 2 * MOST * (2 + 4 * RANKS)
"""Bytes of a file."""
# chosen: writing then takes a hundredth of the time.
_RARELY = 100  # times as long as a write takes, until the next one
_SOONEST = 2.0  # seconds until the next write

_Stamp = tuple[int, int, int]  # of a file: its number, size and time
_Key = TypeVar("_Key", int, tuple[int, int])


class NotRows(Exception):
    """The file is damaged, or not a table for this tokenizer and version."""


def encoded_rows(rows: BestRows, tokenizer: str, vocab_size: int) -> bytes:
    """The bytes of a file."""
    best = [*rows.after_one.values(), *rows.after_two.values()]
    ids = np.full((len(best), RANKS), -1, dtype=_ID)
    for at, one in enumerate(best):
        ids[at, : len(one.ids)] = one.ids[:RANKS]
    sizes = [min(len(one.ids), RANKS) for one in best]
    head = _FIXED.pack(
        _MAGIC,
        _VERSION,
        RANKS,
        vocab_size,
        len(rows.after_one),
        len(rows.after_two),
        bytes.fromhex(tokenizer),
    )
    data = b"".join(
        (
            head,
            np.array([*rows.after_one], _ID).tobytes(),
            np.array([*rows.after_two], _ID).tobytes(),
            bytes(min(one.run, LONGEST_RUN) for one in best),
            bytes(sizes),
            ids.tobytes(),
        )
    )
    return data + hashlib.sha256(data).digest()


def decoded_rows(data: bytes, tokenizer: str, vocab_size: int) -> BestRows:
    """The rows of `encoded_rows`. Raises NotRows."""
    try:
        magic, version, ranks, vocabulary, ones, twos, owner = _FIXED.unpack_from(data)
    except struct.error as error:
        raise NotRows("it is too short") from error
    if (magic, version, ranks) != (_MAGIC, _VERSION, RANKS):
        raise NotRows("it has another version")
    if (vocabulary, owner.hex()) != (vocab_size, tokenizer):
        raise NotRows("it is of another tokenizer")
    rows = ones + twos
    size = _FIXED.size + _CHECKSUM + 4 * ones + 8 * twos + rows * (2 + 4 * RANKS)
    if max(ones, twos) > MOST or len(data) != size:
        raise NotRows("its sizes are impossible")
    if hashlib.sha256(data[:-_CHECKSUM]).digest() != data[-_CHECKSUM:]:
        raise NotRows("its checksum is wrong")
    at = _FIXED.size
    one = np.frombuffer(data, _ID, ones, at)
    two = np.frombuffer(data, _ID, 2 * twos, at + 4 * ones)
    at += 4 * ones + 8 * twos
    runs = np.frombuffer(data, np.uint8, rows, at)
    sizes = np.frombuffer(data, np.uint8, rows, at + rows)
    ids = np.frombuffer(data, _ID, rows * RANKS, at + 2 * rows).reshape(rows, RANKS)
    _check(one, two, runs, sizes, ids, vocab_size)
    best = [
        Best(row[:size], run)
        for row, size, run in zip(
            ids.tolist(), sizes.tolist(), runs.tolist(), strict=True
        )
    ]
    pairs = ((a, b) for a, b in two.reshape(twos, 2).tolist())
    return BestRows(
        dict(zip(one.tolist(), best[:ones], strict=True)),
        dict(zip(pairs, best[ones:], strict=True)),
    )


def _check(
    one: NDArray[np.int32],
    two: NDArray[np.int32],
    runs: NDArray[np.uint8],
    sizes: NDArray[np.uint8],
    ids: NDArray[np.int32],
    vocab_size: int,
) -> None:
    """Raises NotRows for numbers that a table cannot have."""
    used = ids[np.arange(RANKS) < sizes[:, None]]
    for tokens in (one, two, used):
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
            raise NotRows("it has ids that are no tokens")
    for counts, most in ((runs, LONGEST_RUN), (sizes, RANKS)):
        if counts.size and not 1 <= counts.min() <= counts.max() <= most:
            raise NotRows("it has numbers that no row can have")


class KeptTable:
    """The file of a model's table, and the table that sessions use.

    folder: of the memory. allowed: asked before each write, as the user may have
    changed their mind. Nothing is read before the table is first used.

    A file that was deleted is not written again: `edgecs memory clear` counts for
    processes that run, too. What other processes have written is kept beside.
    """

    def __init__(
        self,
        folder: Path,
        model: Identity,
        *,
        writes: bool,
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        self.path = path_of(folder, "recycling", model)
        self.table = RecyclingTable(self._load)
        self._model, self._writes, self._allowed = model, writes, allowed
        self._lock = lock_of(folder)
        self._seen: _Stamp | None = None  # of the file as it was read or written
        self._next = 0.0  # when it may be written again
        if writes:
            sweep(self.path.parent)

    def _load(self) -> BestRows:
        rows, self._seen = BestRows({}, {}), self._stamp()
        if self._seen is not None:
            return self._read()
        if self._writes and self._allowed():
            # So that a missing file means later that it was deleted.
            with suppress(OSError, Timeout):
                make_folder(self.path)
                with self._lock:
                    if self._stamp() is None:
                        self._write(rows)
            self._seen = self._stamp()
        return rows

    def _read(self) -> BestRows:
        model = self._model
        try:
            data = read_bounded(self.path, LARGEST)
            return decoded_rows(data, model.tokenizer, model.vocab_size)
        except (OSError, NotRows):
            return BestRows({}, {})

    def save_soon(self) -> None:
        """Writes what was learned, unless the last write was a short time ago."""
        if time.monotonic() >= self._next:
            began = time.monotonic()
            self.save()
            ended = time.monotonic()
            self._next = ended + max(_SOONEST, _RARELY * (ended - began))

    def save(self) -> bool:
        """Writes what was learned; False: nothing was, or it may not be written.

        Raises nothing for a full disk or a folder that cannot be written: the rows are
        learned again.
        """
        if not (self._writes and self.table.learned and self._allowed()):
            return False
        self.table.learned = False
        try:
            with self._lock:
                now = self._stamp()
                if now is None or self._seen is None:  # deleted, or never written
                    return False
                rows = self.table.copy()
                if now != self._seen:
                    rows = merged(self._read(), rows)
                self._write(rows)
                self._seen = self._stamp()
        except (OSError, Timeout):
            self.table.learned = True
            return False
        return True

    def _write(self, rows: BestRows) -> None:
        model = self._model
        data = encoded_rows(rows, model.tokenizer, model.vocab_size)
        write_whole(self.path, data, private=True)

    def _stamp(self) -> _Stamp | None:
        try:
            state = self.path.stat()
        except OSError:
            return None
        return state.st_ino, state.st_size, state.st_mtime_ns


def merged(older: BestRows, newer: BestRows) -> BestRows:
    """The rows of both, of equal keys the newer; at most MOST, the newest."""
    return BestRows(
        _joined(older.after_one, newer.after_one),
        _joined(older.after_two, newer.after_two),
    )


def _joined(older: dict[_Key, Best], newer: dict[_Key, Best]) -> dict[_Key, Best]:
    rows = [(key, best) for key, best in older.items() if key not in newer]
    rows += newer.items()
    return dict(rows[-MOST:])


def exported(path: Path) -> dict[str, Sequence[object]] | None:
    """The rows of a file as JSON values; None: it cannot be read.

    They are read as for the tokenizer and the vocabulary that the file names.
    """
    try:
        data = read_bounded(path, LARGEST)
        *_, vocab_size, _, _, tokenizer = _FIXED.unpack_from(data)
        rows = decoded_rows(data, tokenizer.hex(), vocab_size)
    except (OSError, NotRows, struct.error):
        return None
    return {
        "after_one": [[key, best.ids] for key, best in rows.after_one.items()],
        "after_two": [[*key, best.ids] for key, best in rows.after_two.items()],
    }
