"""Reads and writes of the prefix cache, in a thread of their own.

The thread that computes for all conversations never waits for a disk: it leaves cells
to be written here, and asks for files, whose cells it takes when they have been read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from edgecs.engines.kv_snapshot import KVSnapshot

logger = logging.getLogger("edgecs")

# chosen: some conversations of a small model; a larger one is written alone.
WAITING_BYTES = 1 << 30  # of cells that wait to be written
# chosen: a prompt of thousands of tokens is read in that time.
PATIENCE = 10.0  # seconds that an answer waits for a file


class Reading:
    """A file that is being read. cells: None until then, and if it cannot be used."""

    def __init__(self, path: Path, patience: float = PATIENCE) -> None:
        self.path = path
        self.cells: KVSnapshot | None = None
        self._done, self._until = threading.Event(), time.monotonic() + patience

    @property
    def is_done(self) -> bool:
        """Whether `cells` is what the file has."""
        return self._done.is_set()

    @property
    def is_late(self) -> bool:
        """Whether it takes longer than an answer should wait."""
        return not self.is_done and time.monotonic() > self._until

    def end(self, cells: KVSnapshot | None) -> None:
        """Called once, by the thread that has read it."""
        self.cells = cells
        self._done.set()


class FileThread:
    """One thread for all files; reads come before writes.

    read: the cells of a file, None if it cannot be used. write: writes a file. Neither
    raises. most: bytes of cells that may wait to be written; `dropped` counts the
    conversations that did not fit. on_read: called in this thread after every read.
    """

    def __init__(
        self,
        read: Callable[[Path], KVSnapshot | None],
        write: Callable[[Path, KVSnapshot], None],
        *,
        most: int = WAITING_BYTES,
        patience: float = PATIENCE,
    ) -> None:
        self.dropped = 0
        self.on_read: Callable[[], None] | None = None
        self._read, self._write = read, write
        self._most, self._patience = most, patience
        self._readings: deque[Reading] = deque()
        self._writes: dict[Path, KVSnapshot] = {}  # in the order of their arrival
        self._others: deque[Callable[[], None]] = deque()
        self._bytes = 0  # of the above
        self._busy = self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(
            target=self._run, name="edgecs-prefixes", daemon=True
        )
        self._thread.start()

    def write(self, path: Path, cells: KVSnapshot, *, waits: bool = False) -> bool:
        """Leave cells to be written; False: too many wait, and these are dropped.

        waits: wait until there is room instead, as at the end of a server.
        """
        size = len(cells.data)
        with self._changed:
            while waits and not self._has_room(size):
                self._changed.wait()
            if self._closing or not self._has_room(size):
                self.dropped += 1
                return False
            self._writes[path] = cells
            self._bytes += size
            self._changed.notify_all()
        return True

    def read(self, path: Path) -> Reading:
        """Have a file read; at once if its cells still wait to be written."""
        reading = Reading(path, self._patience)
        with self._changed:
            if (cells := self._writes.get(path)) is not None:
                reading.end(cells)
            elif self._closing:
                reading.end(None)
            else:
                self._readings.append(reading)
                self._changed.notify_all()
        return reading

    def call(self, function: Callable[[], None]) -> None:
        """Have a function called, which does not raise, after reads and writes."""
        with self._changed:
            self._others.append(function)
            self._changed.notify_all()

    def drain(self) -> None:
        """Wait until everything is done."""
        with self._changed:
            while self._busy or self._has_work():
                self._changed.wait()

    def close(self) -> None:
        """Wait until everything is done, and end the thread; may be called again."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _has_room(self, size: int) -> bool:
        return not self._writes or self._bytes + size <= self._most

    def _has_work(self) -> bool:
        return bool(self._readings or self._writes or self._others)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                while not self._has_work():
                    if self._closing:
                        return
                    self._changed.wait()
                self._busy = True
            try:
                self._next()
            except Exception:  # a bug must not end the thread
                logger.exception("prefix cache: a file was not handled")

    def _next(self) -> None:
        if self._readings:
            self._read_next(self._readings.popleft())
        elif self._writes:
            path, cells = next(iter(self._writes.items()))
            try:
                self._write(path, cells)
            finally:
                with self._changed:
                    del self._writes[path]
                    self._bytes -= len(cells.data)
                    self._changed.notify_all()
        else:
            self._others.popleft()()

    def _read_next(self, reading: Reading) -> None:
        cells = None
        try:
            if not reading.is_late:  # nobody waits for it any more
                cells = self._read(reading.path)
        finally:
            reading.end(cells)
            if self.on_read is not None:
                self.on_read()
