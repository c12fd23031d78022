"""The user's own store: texts that are kept across runs and looked up for drafts.

The texts are in a SQLite database (`documents`), the index beside it is made from them
(`index`). A lookup touches the index only: a binary search in each of a few segments,
whatever their size.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from edgecs.drafters.corpus import Match
from edgecs.errors import ConfigError
from edgecs.memory.database import FILE, Unreadable
from edgecs.memory.documents import Documents, Kind, Tokens
from edgecs.memory.index import Index
from edgecs.memory.lookup import looked_up
from edgecs.memory.segment import Segment

# chosen: 10 M tokens with their texts; the index takes about as much again.
MOST_BYTES = 128 << 20
_USEFUL = 8  # tokens of a match that counts as a use of its document
# chosen: a second or two of reading with the tokenizer, when a model is opened.
READ_AT_ONCE = 4 << 20  # bytes of texts


class UserStore:
    """The documents of one tokenizer, as a `Corpus`; a context manager.

    tokenizer: its identity, `vocabulary_hash`. vocab_size: larger ids are not returned.
    most_bytes: of texts and tokens; when there are more, what was not of use for
    longest is deleted. One thread may search while another one adds.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: str,
        vocab_size: int,
        *,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """Opens the store of a folder, or creates one. Raises ConfigError."""
        self._tokenizer, self._vocab_size = bytes.fromhex(tokenizer), vocab_size
        self.documents = Documents(folder)
        self._most = most_bytes
        self._index = Index(
            folder,
            store=self.documents.identity,
            tokenizer=self._tokenizer,
            writes=not self.documents.read_only,
        )
        self._lock = threading.Lock()  # over changes of the index
        self._used = set[int]()
        self._changes = -1
        try:
            self.refresh()
        except BaseException:
            self.documents.close()
            raise

    @property
    def read_only(self) -> bool:
        """Whether nothing can be added."""
        return self.documents.read_only

    @property
    def tokens(self) -> int:
        """Number of tokens that can be found."""
        return sum(s.words - len(s.ids) for s in self._index.segments)

    def refresh(self) -> None:
        """Takes what other processes have added or deleted. Raises ConfigError."""
        with self._lock:
            changes = self.documents.changes()
            if changes != self._changes:
                self._sync()
                self._changes = changes

    def _sync(self) -> None:
        present = self.documents.ids(self._tokenizer)
        self._index.sync(
            present, lambda ids: self.documents.tokens(self._tokenizer, ids)
        )

    def add(self, kind: Kind, source: str, text: str, tokens: Tokens) -> bool:
        """Stores a text and its tokens; False if it is there already.

        It is on the disk, and can be found, when this returns. Raises ConfigError.
        """
        if not len(tokens) or int(tokens.min()) < 0:
            return False
        with self._lock:
            entry = (self._tokenizer, tokens)
            number = self.documents.add(kind, source, text, entry)
            if number is None:
                return False
            self._index.add([(number, tokens)])
            self._touch()
            if self.documents.evict(self._most):
                self._sync()
            return True

    def read(
        self, encode: Callable[[str], Tokens], most_bytes: int = READ_AT_ONCE
    ) -> tuple[int, int]:
        """Tokenises texts that have no tokens of this tokenizer, the newest first.

        They were added without a model, or for a model with another tokenizer. encode:
        returns the ids of a text. At most about `most_bytes` of texts, at least one.
        Returns how many were read, and how many are left. Raises ConfigError.
        """
        if self.read_only:
            return 0, 0
        unread, read = self.documents.unread(self._tokenizer), 0
        while read < len(unread) and (not read or unread[read][1] <= most_bytes):
            number, size = unread[read]
            tokens = encode(self.documents.text(number))
            self.documents.put_tokens(number, self._tokenizer, tokens)
            most_bytes -= size
            read += 1
        if read:
            with self._lock:
                self.documents.evict(self._most)
                self._sync()
        return read, len(unread) - read

    def match(self, end: Sequence[int], k: int) -> Match | None:
        """The longest match of the end of a text, see `Corpus`."""
        hit = looked_up(self._index.segments, end, k, self._vocab_size)
        if hit is None:
            return None
        if hit.match.length >= _USEFUL:
            self._note_use(hit.segment, hit.position)
        return hit.match

    def _note_use(self, segment: Segment, at: int) -> None:
        number = segment.document(at)
        if number is not None:
            self._used.add(number)

    def _touch(self) -> None:
        """Writes which documents were of use, so that they are kept."""
        used, self._used = self._used, set()
        if used and not self.read_only:
            self.documents.touch(sorted(used))

    def close(self) -> None:
        """Closes the store; may be called again."""
        with self._lock, suppress(ConfigError):
            self._touch()
        self._index.segments = ()
        self.documents.close()

    def __enter__(self) -> UserStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def clear(folder: Path) -> int | None:
    """Deletes all texts of a folder, and their index.

    Returns how many there were; None: the database could not be read, and was deleted.
    Raises ConfigError.
    """
    with suppress(OSError):
        shutil.rmtree(folder / "index")
    if not (folder / FILE).exists():
        return 0
    try:
        with Documents(folder) as documents:
            return documents.clear()
    except Unreadable:
        try:
            for name in (FILE, f"{FILE}-wal", f"{FILE}-shm", f"{FILE}-journal"):
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{folder / FILE} cannot be deleted ({error.strerror}): check the "
                "rights of the folder"
            ) from error
        return None
