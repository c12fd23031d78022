"""Prefix cache on disk: KV cells of conversations that have lost their slots.

Every conversation is a file in the format of saved chats (`chat.archive`), in a folder
for the model and its load options. Several servers may use one folder: each file is
complete or absent, and a file that another server has removed is a miss. A file that no
server with this folder's secret wrote (`prefix_key`), or that has changed since, is
removed: llama.cpp gets no state that was not written by itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from edgecs.chat.archive import Damaged, Owner, read, read_tokens, save
from edgecs.core.context import Tokens
from edgecs.core.files import sweep
from edgecs.engines.kv_snapshot import KVSnapshot
from edgecs.errors import ConfigError, EdgecsError, ModelError
from edgecs.runtime.loader import Loaded
from edgecs.server.prefixes.file_thread import (
    PATIENCE,
    WAITING_BYTES,
    FileThread,
    Reading,
)
from edgecs.server.prefixes.key import seal_of

logger = logging.getLogger("edgecs")

# chosen: fewer tokens are read about as fast as a file.
LEAST = 64  # tokens that a file must save
# chosen: a file is read whole, checked and copied, at some hundred MB/s.
_FASTER = 8  # tokens of a file that are loaded in the time of reading one of a prompt
_SUFFIX = ".cells"
PREFIX_BYTES = 8 << 30  # as llama-server's --cache-ram


class Snapshots(Protocol):
    """A language model whose cells can be saved, see `LlamaLM`."""

    def snapshot(self, sequence: int = 0) -> KVSnapshot | None:
        """The cells of a sequence; None if it has none."""

    def restore(self, cells: KVSnapshot, sequence: int = 0) -> bool:
        """Replaces the cells of a sequence; False: it has none then."""


class Found(NamedTuple):
    """A file, and how many tokens of a prompt it saves."""

    path: Path
    saves: int


class PrefixStore:
    """The saved conversations of one model with one set of load options.

    model: the target, used by the thread that calls `save` and `restore`. root: the
    folder; name: of the model's folder in it. most: bytes of all files in `root`; the
    least recently used ones are removed. any_prefix: whether a prompt may continue
    from a part of a saved conversation, and not only from its end. waiting: bytes of
    cells that may wait to be written. patience: seconds that an answer waits for a
    file.

    Files are read and written by a thread of its own. Those that cannot be used or
    written are logged. `refused` counts those that were removed because they were
    damaged, forged or rejected by the engine.
    """

    def __init__(
        self,
        model: Snapshots,
        root: Path,
        name: str,
        owner: Owner,
        *,
        most: int,
        any_prefix: bool,
        waiting: int = WAITING_BYTES,
        patience: float = PATIENCE,
    ) -> None:
        self._model = model
        self._root, self._folder = root, root / name
        self._owner, self._most, self._any_prefix = owner, most, any_prefix
        self.refused = 0
        self._seal = seal_of(root)
        self._known: dict[Path, Tokens] = {}
        self._lock = threading.Lock()  # over the one above
        self._scan()
        self._files_thread = FileThread(
            self._read, self._write, most=waiting, patience=patience
        )

    @property
    def dropped(self) -> int:
        """Number of conversations that were not saved, as too many cells waited."""
        return self._files_thread.dropped

    def on_read(self, call: Callable[[], None]) -> None:
        """Have a function called, in another thread, after every read of a file."""
        self._files_thread.on_read = call

    def find(self, prompt: Tokens) -> Found | None:
        """The file that saves most tokens of a prompt, if that pays."""
        with self._lock:
            known = list(self._known.items())
        found = [Found(path, self._saves(prompt, tokens)) for path, tokens in known]
        best = max(found, key=lambda one: one.saves, default=None)
        if best is None:
            return None
        size = next(tokens.size for path, tokens in known if path == best.path)
        return best if best.saves >= max(LEAST, size // _FASTER) else None

    def fetch(self, path: Path) -> Reading:
        """Begin to read a file, for `restore`."""
        return self._files_thread.read(path)

    def restore(self, read: Reading, sequence: int) -> bool:
        """Replace the cells of a sequence by those of a file; False: it has none.

        A file that has not been read yet is given up.
        """
        path, cells = read.path, read.cells
        if not read.is_done:
            logger.warning("prefix cache: %s is read too slowly: not used", path)
        if cells is None:
            return False
        try:
            if self._model.restore(cells, sequence):
                return True
        except (EdgecsError, MemoryError) as error:  # not because of the file
            self._forget(path)
            logger.warning("prefix cache: %s is not restored: %r", path, error)
            return False
        why = f"the engine rejects the cells in {path}"
        self._files_thread.call(partial(self._refuse, path, why))
        self._forget(path)
        return False

    def save(self, sequence: int, *, waits: bool = False) -> None:
        """Save the cells of a sequence, unless they are few or known.

        They are dropped if too many cells wait to be written, unless it `waits`.
        """
        try:
            cells = self._model.snapshot(sequence)
        except (EdgecsError, MemoryError) as error:
            logger.warning("prefix cache: cells are not saved: %r", error)
            return
        if cells is None or len(cells.tokens) < LEAST:
            return
        tokens = np.array(cells.tokens, dtype=np.int32)
        name = hashlib.sha256(tokens.tobytes()).hexdigest()[:32]
        path = self._folder / f"{name}{_SUFFIX}"
        with self._lock:
            if path in self._known or self._is_covered(tokens):
                return
            self._known[path] = tokens
        if not self._files_thread.write(path, cells, waits=waits):
            self._forget(path)
            size = len(cells.data) >> 20
            logger.warning(
                "prefix cache: %d MiB of cells are not saved: the disk is too slow",
                size,
            )

    def drain(self) -> None:
        """Wait until all files are read and written."""
        self._files_thread.drain()

    def close(self) -> None:
        """Wait until all files are written."""
        self._files_thread.close()

    def _is_covered(self, tokens: Tokens) -> bool:
        others = self._known.values()
        return self._any_prefix and any(_starts(other, tokens) for other in others)

    def _read(self, path: Path) -> KVSnapshot | None:
        try:
            saved = read(path, self._owner, seal=self._seal)
            os.utime(path)
        except (Damaged, ModelError) as error:
            self._refuse(path, error)
            return None
        except (EdgecsError, OSError, MemoryError) as error:
            self._forget(path)
            if path.exists():
                logger.warning("prefix cache: %s", str(error) or repr(error))
            return None
        if saved.cells is None:  # it has been replaced since it was found
            self._refuse(path, f"{path} has no cells for this model: {saved.reason}")
        return saved.cells

    def _saves(self, prompt: Tokens, tokens: Tokens) -> int:
        size = min(tokens.size, prompt.size - 1)
        other = np.flatnonzero(tokens[:size] != prompt[:size])
        common = int(other[0]) if other.size else size
        return common if self._any_prefix or common == tokens.size else 0

    def _scan(self) -> None:
        """Find the files of earlier servers."""
        sweep(self._folder)
        with suppress(OSError):
            for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
                try:
                    tokens = read_tokens(path, self._owner, seal=self._seal)
                except Damaged as error:
                    self._refuse(path, error)
                    continue
                except (EdgecsError, MemoryError) as error:
                    logger.warning("prefix cache: %s", str(error) or repr(error))
                    continue
                if tokens is not None:
                    self._known[path] = np.array(tokens, dtype=np.int32)

    def _write(self, path: Path, cells: KVSnapshot) -> None:
        """Write a file; the ones that it makes superfluous are removed."""
        size, tokens = len(cells.data), np.array(cells.tokens, dtype=np.int32)
        try:
            if size > self._most:
                raise ConfigError(
                    f"{len(cells.tokens)} tokens take {size >> 20} MiB, more than "
                    "--prefix-cache-size: they are not saved"
                )
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make_room(size)
            path.unlink(missing_ok=True)  # a damaged one would not be replaced
            save(path, [], self._owner, cells, seal=self._seal)
        except Exception as error:
            self._forget(path)
            logger.warning("prefix cache: %s", error)
            return
        with self._lock:
            old = [
                p for p, t in self._known.items() if p != path and _starts(tokens, t)
            ]
        for shorter in old:
            self._remove(shorter)

    def _make_room(self, size: int) -> None:
        """Remove the least recently used files until `size` bytes more fit."""
        files = sorted(self._files(), key=lambda file: file[1])
        total = sum(bytes_ for _, _, bytes_ in files)
        for path, _, bytes_ in files:
            if total + size <= self._most:
                return
            self._remove(path)
            total -= bytes_

    def _files(self) -> Iterator[tuple[Path, float, int]]:
        """All files in the root, when they were last used, and their bytes."""
        for path in self._root.glob(f"*/*{_SUFFIX}"):
            with suppress(OSError):
                found = path.lstat()
                yield path, found.st_mtime, found.st_size

    def _refuse(self, path: Path, why: object) -> None:
        """Remove a file that must not be used."""
        self.refused += 1
        self._remove(path)
        logger.warning("prefix cache: removed: %s", why)

    def _remove(self, path: Path) -> None:
        self._forget(path)
        with suppress(OSError):
            path.unlink()

    def _forget(self, path: Path) -> None:
        with self._lock:
            self._known.pop(path, None)


def _starts(whole: Tokens, tokens: Tokens) -> bool:
    """Whether `whole` begins with `tokens`."""
    return tokens.size <= whole.size and bool((whole[: tokens.size] == tokens).all())


def open_store(loaded: Loaded, root: Path, most: int) -> PrefixStore:
    """The store of a target.

    most: bytes of all files in `root`.
    """
    target, key = loaded.target, loaded.key()
    loading = json.dumps([key.bits, target.sequences])  # a snapshot has all sequences
    owner = Owner(key.model, key.fingerprint, loading, target.vocab_size)
    any_prefix = target.uniform and target.keeps_prefixes
    return PrefixStore(target, root, key.slot, owner, most=most, any_prefix=any_prefix)
