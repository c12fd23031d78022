"""The SQLite database of a memory: opening it, and what is told of its errors."""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgecs.core.reading import plain
from edgecs.errors import ConfigError

FILE = "memory.db"
_APPLICATION = 0x65646763  # "edgc", in the header of the file
_VERSION = 1
_WAITS = 5.0  # seconds for another writer

_SCHEMA = """
CREATE TABLE store (identity BLOB NOT NULL);
CREATE TABLE documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    source TEXT NOT NULL,
    sha256 BLOB NOT NULL,
    text TEXT NOT NULL,
    size INTEGER NOT NULL,
    added INTEGER NOT NULL,
    used INTEGER NOT NULL
);
CREATE UNIQUE INDEX by_text ON documents (sha256, kind);
CREATE INDEX by_use ON documents (used, id, size);
CREATE TABLE tokens (
    document INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
    tokenizer BLOB NOT NULL,
    ids BLOB NOT NULL,
    PRIMARY KEY (document, tokenizer)
);
"""


class Unreadable(ConfigError):
    """A database that is damaged, or of another version of edgecs."""


class Database:
    """The database of a folder.

    The folder and the database are readable by their owner only. Methods may be called
    from any thread. All raise ConfigError where the database cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the database of a folder, or creates both.

        A database that may only be read is opened for reading.
        """
        self.path = folder / FILE
        self._lock = threading.RLock()
        self.read_only = False
        with _told(self.path):
            self._db = self._opened(folder)
            try:
                self._check()
                row = self._db.execute("SELECT identity FROM store").fetchone()
                self.identity: bytes = row[0] if row else b""
            except BaseException:
                self._db.close()
                raise
            if not isinstance(self.identity, bytes) or len(self.identity) != 16:
                self._db.close()
                raise sqlite3.DatabaseError("its identity is missing")

    def _opened(self, folder: Path) -> sqlite3.Connection:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            made = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600)
            try:
                if not stat.S_ISREG(os.fstat(made).st_mode):
                    raise sqlite3.DatabaseError("it is not a regular file")
            finally:
                os.close(made)
            with suppress(OSError):
                self.path.chmod(0o600)
            db = self._connected("rw")
        except OSError as error:
            if not self.path.is_file():
                raise
            return self._for_reading(error)
        try:
            # A log beside the database: readers do not wait for a writer.
            db.execute("PRAGMA journal_mode = WAL").fetchone()
            if not _number(db, "application_id") and not _number(db, "user_version"):
                self._create(db)
        except sqlite3.Error as error:
            db.close()
            if not _forbids_writing(error):
                raise
            return self._for_reading(error)
        return db

    def _for_reading(self, why: Exception) -> sqlite3.Connection:
        """A connection that cannot write."""
        self.read_only = True
        for mode in ("ro", "ro&immutable=1"):  # without a log that would be written
            try:
                db = self._connected(mode)
                db.execute("SELECT count(*) FROM sqlite_master").fetchone()
                return db
            except sqlite3.OperationalError:
                continue
        raise why

    def _connected(self, mode: str) -> sqlite3.Connection:
        # `as_uri` writes the drive of a path on Windows as SQLite needs it.
        where = f"{self.path.absolute().as_uri()}?mode={mode}"
        db = sqlite3.connect(
            where,
            uri=True,
            timeout=_WAITS,
            isolation_level=None,
            check_same_thread=False,
        )
        db.text_factory = lambda raw: raw.decode("utf-8", "replace")
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA secure_delete = ON")
        # Of a power failure, not of a kill, the last commits may be lost.
        db.execute("PRAGMA synchronous = NORMAL")
        return db

    def _create(self, db: sqlite3.Connection) -> None:
        with _transaction(db):
            if db.execute("SELECT 1 FROM sqlite_master").fetchone():
                return  # another process was faster, or it is another program's
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute("INSERT INTO store VALUES (?)", (secrets.token_bytes(16),))
            db.execute(f"PRAGMA application_id = {_APPLICATION}")
            db.execute(f"PRAGMA user_version = {_VERSION}")

    def _check(self) -> None:
        """Raises ConfigError for the database of another program or version."""
        application = _number(self._db, "application_id")
        version = _number(self._db, "user_version")
        if application != _APPLICATION:
            raise ConfigError(
                f"{self.path} is a database of another program: give another folder, "
                "or move the file away"
            )
        if version != _VERSION:
            raise Unreadable(
                f"{self.path} has version {version} of the memory's format and this "
                f"edgecs reads version {_VERSION}: update edgecs, or delete the texts "
                "with `edgecs memory clear`"
            )

    def close(self) -> None:
        """Closes the database; may be called again."""
        with self._lock, suppress(sqlite3.Error):
            self._db.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for statements that change nothing."""
        with self._lock, _told(self.path):
            yield self._db

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The connection, for statements of which all are done or none."""
        with self._lock, _told(self.path), _transaction(self._db):
            yield self._db

    def changes(self) -> int:
        """A number that changes when another process has written."""
        with self.reading() as db:
            return _number(db, "data_version")


def _number(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _forbids_writing(error: sqlite3.Error) -> bool:
    said = str(error)
    return "readonly" in said or "unable to open" in said


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of a block's statements or none."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # SQLite may have done it already
            db.execute("ROLLBACK")
        raise


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Raises what SQLite and the system say as a ConfigError, or an Unreadable."""
    try:
        yield
    except (sqlite3.Error, OSError, ValueError, OverflowError) as error:
        said, kind = plain(str(error)), ConfigError
        if isinstance(error, sqlite3.OperationalError) and "full" in said:
            remedy = "make room on the disk, or delete texts (`edgecs memory clear`)"
        elif isinstance(error, sqlite3.OperationalError) and "locked" in said:
            remedy = "another process is writing; try again"
        elif isinstance(error, OSError) or "readonly" in said or "open" in said:
            remedy = "check the rights of the folder, or give another (--memory DIR)"
        else:
            kind = Unreadable
            remedy = "`edgecs memory clear` deletes it and begins a new one"
        raise kind(f"the memory {path} cannot be used ({said}): {remedy}") from error
