"""The documents of a store: the only truth of a memory.

What else there is, the index, is made from it. A commit is atomic: a process that is
killed loses at most what it had not committed, and the next one opens the database as
usual. Several processes may read and write at once; SQLite makes writers wait.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from edgecs.memory.database import Database

Kind = Literal["answer", "file"]
Tokens = NDArray[np.int32]

_LONGEST_SOURCE = 1000  # characters


class Document(NamedTuple):
    """A document without its text. Times: seconds since 1970."""

    id: int
    kind: str
    source: str  # a path, or the name of a model
    size: int  # bytes of its text and tokens
    added: int
    used: int


class Documents:
    """The documents of a folder's database, see `Database`; a context manager."""

    def __init__(self, folder: Path) -> None:
        """Opens the database of a folder, or creates both. Raises ConfigError."""
        self._database = Database(folder)
        self._reading, self._writing = self._database.reading, self._database.writing
        self.changes = self._database.changes

    @property
    def identity(self) -> bytes:
        """The random identity of the database, 16 bytes."""
        return self._database.identity

    @property
    def read_only(self) -> bool:
        """Whether nothing can be added."""
        return self._database.read_only

    def close(self) -> None:
        """Closes the database; may be called again."""
        self._database.close()

    def __enter__(self) -> Documents:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

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
                "SELECT id, length(text) FROM documents WHERE id "
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


def _storable(text: str) -> str:
    """A text without surrogates, and without NUL, where SQLite's functions stop."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _is_document(row: tuple[object, ...]) -> bool:
    kinds = (int, str, str, int, int, int)
    return all(isinstance(v, kind) for v, kind in zip(row, kinds, strict=True))
