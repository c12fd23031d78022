"""The documents of a store in a SQLite database: the only truth of a memory.

What else there is, the index, is made from it. A commit is atomic: a process that is
killed loses at most what it had not committed, and the next one opens the database as
usual. Several processes may read and write at once; SQLite makes writers wait.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from edgecs.core.reading import plain
from edgecs.errors import ConfigError

Kind = Literal["answer", "file", "phrases"]
Tokens = NDArray[np.int32]

FILE = "memory.db"
_APPLICATION = 0x65646763  # "edgc", in the header of the file
_VERSION = 1
_WAITS = 5.0  # seconds for another writer
_LONGEST_SOURCE = 1000  # characters

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


class Document(NamedTuple):
    """A document without its text. Times: seconds since 1970."""

    id: int
    kind: str
    source: str  # a path, or the name of a model
    size: int  # bytes of its text and tokens
    added: int
    used: int


class Documents:
    """The database of a folder; a context manager.

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
                self.identity = row[0]
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

    def __enter__(self) -> Documents:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _told(self.path):
            yield self._db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _told(self.path), _transaction(self._db):
            yield self._db

    def add(
        self,
        kind: Kind,
        source: str,
        text: str,
        tokens: tuple[bytes, Tokens] | None = None,
    ) -> int | None:
        """Adds a text and returns its id; None if it is there already.

        A file that has changed replaces its earlier text. tokens: identity of the
        tokenizer, and the ids; None: they are made when a model is loaded.
        """
        assert kind in get_args(Kind)
        text, source = _storable(text), _storable(source[:_LONGEST_SOURCE])
        now = int(time.time())
        raw = text.encode("utf-8")
        ids = tokens[1].astype("<i4").tobytes() if tokens else b""
        digest = hashlib.sha256(raw).digest()
        with self._writing() as db:
            known = db.execute(
                "SELECT id FROM documents WHERE sha256 = ? AND kind = ?", (digest, kind)
            ).fetchone()
            if known:
                db.execute(
                    "UPDATE documents SET used = ?, source = ? WHERE id = ?",
                    (now, source, known[0]),
                )
                return None
            if kind != "answer":
                db.execute(
                    "DELETE FROM documents WHERE kind = ? AND source = ?",
                    (kind, source),
                )
            row = (kind, source, digest, text, len(raw) + len(ids), now, now)
            number = db.execute(
                "INSERT INTO documents (kind, source, sha256, text, size, added, used) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            ).lastrowid
            if tokens:
                entry = (number, tokens[0], ids)
                db.execute("INSERT INTO tokens VALUES (?, ?, ?)", entry)
            return number

    def put_tokens(self, document: int, tokenizer: bytes, tokens: Tokens) -> None:
        """Stores the tokens of a document that is there, for one tokenizer."""
        ids = tokens.astype("<i4").tobytes()
        with self._writing() as db:
            db.execute(
                "INSERT OR IGNORE INTO tokens SELECT id, ?, ? FROM documents "
                "WHERE id = ?",
                (tokenizer, ids, document),
            )
            db.execute(
                "UPDATE documents SET size = size + ? WHERE id = ? AND changes()",
                (len(ids), document),
            )

    def ids(self, tokenizer: bytes) -> set[int]:
        """The documents that have tokens of a tokenizer."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT document FROM tokens WHERE tokenizer = ?", (tokenizer,)
            )
            return {number for (number,) in rows if isinstance(number, int)}

    def tokens(
        self, tokenizer: bytes, documents: Sequence[int]
    ) -> Iterator[tuple[int, Tokens]]:
        """Ids and tokens of documents; those that are gone or damaged are left out."""
        for number in documents:
            with self._reading() as db:
                row = db.execute(
                    "SELECT ids FROM tokens WHERE document = ? AND tokenizer = ?",
                    (number, tokenizer),
                ).fetchone()
            if row and isinstance(row[0], bytes) and len(row[0]) % 4 == 0:
                tokens = np.frombuffer(row[0], "<i4").astype(np.int32)
                if tokens.size and tokens.min() >= 0:
                    yield number, tokens

    def unread(self, tokenizer: bytes) -> list[tuple[int, int]]:
        """Documents without tokens of a tokenizer, the newest first: id and bytes."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT id, length(text) FROM documents WHERE kind != 'phrases' AND id "
                "NOT IN (SELECT document FROM tokens WHERE tokenizer = ?) "
                "ORDER BY id DESC",
                (tokenizer,),
            ).fetchall()
        return [(n, size) for n, size in rows if isinstance(n, int) and size]

    def text(self, document: int) -> str:
        """The text of a document; empty if it is gone."""
        with self._reading() as db:
            row = db.execute(
                "SELECT text FROM documents WHERE id = ?", (document,)
            ).fetchone()
        return row[0] if row and isinstance(row[0], str) else ""

    def all(self) -> list[Document]:
        """All documents, the newest first."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT id, kind, source, size, added, used FROM documents "
                "ORDER BY id DESC"
            ).fetchall()
        return [Document(*row) for row in rows if _is_document(row)]

    def containing(self, text: str) -> list[int]:
        """Documents whose text contains another, in any case; the newest first."""
        # LIKE knows only the upper and lower case of ASCII.
        pattern = text
        for sign in "\\%_":
            pattern = pattern.replace(sign, "\\" + sign)
        with self._reading() as db:
            rows = db.execute(
                "SELECT id FROM documents WHERE text LIKE ? ESCAPE '\\' "
                "ORDER BY id DESC",
                (f"%{pattern}%",),
            )
            return [number for (number,) in rows if isinstance(number, int)]

    def size(self) -> int:
        """Bytes of all texts and tokens."""
        with self._reading() as db:
            total = db.execute("SELECT sum(size) FROM documents").fetchone()[0]
        return total if isinstance(total, int) else 0

    def touch(self, documents: Sequence[int]) -> None:
        """Notes that documents were of use now."""
        now = int(time.time())
        with self._writing() as db:
            db.executemany(
                "UPDATE documents SET used = ? WHERE id = ?",
                [(now, number) for number in documents],
            )

    def remove(self, documents: Sequence[int]) -> None:
        """Deletes documents; their bytes are overwritten."""
        with self._writing() as db:
            db.executemany(
                "DELETE FROM documents WHERE id = ?", [(n,) for n in documents]
            )

    def evict(self, most: int) -> int:
        """Deletes what was not of use for longest, if there are more than `most` bytes.

        Then a tenth of the room is free, so that this is rare. Returns how many.
        """
        total, gone = self.size(), list[int]()
        if total <= most:
            return 0
        with self._reading() as db:
            query = "SELECT id, size FROM documents ORDER BY used, id"
            rows = db.execute(query).fetchall()
        for number, size in rows:
            gone.append(number)
            total -= size
            if total <= most - most // 10:
                break
        self.remove(gone)
        return len(gone)

    def clear(self) -> int:
        """Deletes all documents, and returns their number."""
        with self._writing() as db:
            count: int = db.execute("SELECT count(*) FROM documents").fetchone()[0]
            db.execute("DELETE FROM documents")
        with self._reading() as db, suppress(sqlite3.OperationalError):
            db.execute("VACUUM")  # others may be reading: then the pages stay, empty
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return count

    def changes(self) -> int:
        """A number that changes when another process has written."""
        with self._reading() as db:
            return _number(db, "data_version")


def _storable(text: str) -> str:
    """A text without surrogates, and without NUL, where SQLite's functions stop."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _is_document(row: tuple[object, ...]) -> bool:
    kinds = (int, str, str, int, int, int)
    return all(isinstance(v, kind) for v, kind in zip(row, kinds, strict=True))


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
