"""The index of a store: segments of growing size, merged as in a log-structured tree.

A new document is a segment of its own. Two segments are merged when the larger one is
not many times as large, so there are few, and each token is sorted a few times in its
life. Small segments are in RAM only, larger ones in files that all processes map.

Files are derived from the database. At the start those that fit it are used; the other
documents are sorted again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path

from filelock import FileLock, Timeout

from edgecs.core.files import sweep
from edgecs.memory.documents import Tokens
from edgecs.memory.segment import NotASegment, Segment, built, encoded, opened, written

_FOLDER = "index"
_SUFFIX = ".segment"
_LOCK = "index.lock"
# chosen: as each segment is searched, few of them matter more than rare sorting.
_FACTOR = 16
# chosen: as many as MOST_BYTES of texts and tokens have. Sorting needs about 32 bytes
# of memory for each.
_LARGEST = 16_000_000  # words of a merged segment
# chosen: sorting fewer takes less than opening their file.
_IN_FILE = 32_768  # words of the smallest segment in a file

Owned = Sequence[tuple[int, Tokens]]


class Index:
    """Segments over the documents of one store and one tokenizer.

    store, tokenizer: their identities. writes: whether files may be written. `segments`
    is replaced, never changed, so another thread may search it.
    """

    def __init__(
        self, folder: Path, *, store: bytes, tokenizer: bytes, writes: bool
    ) -> None:
        self.folder = folder / _FOLDER
        self._lock = FileLock(folder / _LOCK, timeout=0, mode=0o600)
        self._store, self._tokenizer, self._writes = store, tokenizer, writes
        self.segments: tuple[Segment, ...] = ()  # the largest first

    def sync(
        self,
        present: set[int],
        read: Callable[[Sequence[int]], Iterable[tuple[int, Tokens]]],
    ) -> None:
        """Makes the segments those of the documents that are present.

        read: returns ids and tokens of documents.
        """
        kept, covered = list[Segment](), set[int]()
        mine = [one for one in self.segments if one.path is None]
        files = sorted(self._files(), key=lambda one: -one.words)
        for segment in [*files, *mine]:
            ids = set(segment.ids)
            if ids <= present and not ids & covered:
                kept.append(segment)
                covered |= ids
        self.segments = tuple(kept)
        group, size = list[tuple[int, Tokens]](), 0
        for number, tokens in read(sorted(present - covered)):
            if size + len(tokens) > _LARGEST and group:
                self.add(group)
                group, size = [], 0
            group.append((number, tokens[: _LARGEST - 1]))
            size += len(tokens) + 1
        if group:
            self.add(group)
        self._drop_unused()

    def add(self, documents: Owned) -> None:
        """Makes documents searchable, together with those of small segments."""
        segments, owned = [*self.segments], [*documents]
        words, merged = _words(documents), list[Segment]()
        while segments:
            last = segments[-1].words
            if last >= _FACTOR * words or last + words > _LARGEST:
                break
            merged.append(segments.pop())
            owned += merged[-1].documents()
            words += last
        segments.append(self._built(sorted(owned, key=itemgetter(0))))
        self.segments = tuple(sorted(segments, key=lambda one: -one.words))
        self._delete([one.path for one in merged if one.path])

    def _built(self, documents: Owned) -> Segment:
        """A segment in a file if it is large enough and may be written, else in RAM."""
        owner = {"store": self._store, "tokenizer": self._tokenizer}
        if _words(documents) < _IN_FILE or not self._writes:
            return built(documents, **owner)
        data = encoded(documents, **owner)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            name = f"{self._tokenizer.hex()[:12]}-{secrets.token_hex(6)}{_SUFFIX}"
            return written(self.folder / name, data)
        except (OSError, NotASegment):  # a full disk: it is searched in RAM
            return Segment(data)

    def _files(self) -> list[Segment]:
        """All segments of files that belong to the store and the tokenizer."""
        found, known = [], {one.path: one for one in self.segments}
        with suppress(OSError):
            for path in self.folder.glob(f"*{_SUFFIX}"):
                if path in known:
                    found.append(known[path])
                    continue
                with suppress(OSError, NotASegment):
                    segment = opened(path)
                    if (segment.store, segment.tokenizer) == (
                        self._store,
                        self._tokenizer,
                    ):
                        found.append(segment)
        return found

    def _drop_unused(self) -> None:
        """Deletes files that are damaged, outdated or covered by others."""
        if self._writes:
            sweep(self.folder)
        used = {one.path for one in self.segments}
        mine = f"{self._tokenizer.hex()[:12]}-*{_SUFFIX}"
        with suppress(OSError):
            self._delete([p for p in self.folder.glob(mine) if p not in used])

    def _delete(self, paths: Sequence[Path]) -> None:
        """Deletes files, unless another process does; one that maps them keeps them."""
        if not (self._writes and paths):
            return
        with suppress(Timeout, OSError), self._lock:
            for path in paths:
                with suppress(OSError):
                    path.unlink()


def _words(documents: Owned) -> int:
    return sum(len(tokens) + 1 for _, tokens in documents)
