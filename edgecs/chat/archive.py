"""A conversation in a file, with its KV cells.

A zip archive: `conversation.json`, and where the engine exports its cells `cells.bin`
and `row.bin`, the row that a regenerated answer starts from. With the same model and
the same load options the cells are restored bit for bit. With other load options the
conversation is computed again; with other weights it is refused.

Entries are not compressed, so that they cannot unpack to more than the file's size.
Every entry has a checksum: `conversation.json` has those of the others, the comment of
the archive has that of `conversation.json`. A seal is a checksum with a secret, for the
last one: a file with it was written by someone who knows the secret.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecs.chat.conversation import Message, checked_ids, restored
from edgecs.core.files import replacing
from edgecs.core.reading import regular_size
from edgecs.engines.kv_snapshot import KVSnapshot
from edgecs.errors import ConfigError, ModelError

FORMAT = 2
_TEXT, _CELLS, _ROW = "conversation.json", "cells.bin", "row.bin"
_LARGEST_TEXT = 256 << 20  # bytes
_LARGEST_SETTING = 4096  # characters
_NONSENSE = (
    zipfile.BadZipFile,
    zlib.error,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    EOFError,
    NotImplementedError,  # another kind of compression
    RuntimeError,  # encrypted
    RecursionError,
    AttributeError,
    IndexError,
    struct.error,
)
Seal = Callable[[bytes], str]
"""A checksum in hexadecimal digits."""
_STAMP = (1980, 1, 1, 0, 0, 0)  # of all entries, so that equal contents are equal files


class Damaged(ConfigError):
    """A file that `save` did not write, or not with this seal, or that has changed."""


def checksum(data: bytes) -> str:
    """SHA-256, which shows damage but no forgery."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Owner:
    """The model of a conversation: its weights, by fingerprint, and load options.

    Cells of another `loading` cannot be used. tokens: ids of its vocabulary go from 0
    to one less.
    """

    model: str
    fingerprint: str
    loading: str
    tokens: int


@dataclass(frozen=True)
class Saved:
    """The content of a file. cells: None if unusable, because of `reason`."""

    messages: list[Message]
    settings: dict[str, str]
    cells: KVSnapshot | None
    reason: str | None


def save(
    path: Path,
    messages: Sequence[dict[str, Any]],
    owner: Owner,
    cells: KVSnapshot | None,
    settings: Mapping[str, str] | None = None,
    *,
    seal: Seal = checksum,
) -> None:
    """Writes a conversation (`Conversation.state`) atomically.

    settings: texts to save with it. Raises ConfigError if the write fails, and for an
    existing file that edgecs did not save.
    """
    text: dict[str, Any] = {
        "format": FORMAT,
        "model": owner.model,
        "fingerprint": owner.fingerprint,
        "loading": owner.loading,
        "messages": list(messages),
        "settings": dict(settings or {}),
    }
    blobs: dict[str, bytes] = {}
    if cells:
        blobs[_CELLS] = cells.data
        if cells.row:
            blobs[_ROW] = cells.row[1].astype("<f4").tobytes()
        text["cells"] = {
            "tokens": cells.tokens,
            "row": cells.row[0] if cells.row else None,
        }
        text["sha256"] = {name: checksum(blob) for name, blob in blobs.items()}
    blobs[_TEXT] = json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _refuse_others(path)
        with replacing(path, private=True) as file, zipfile.ZipFile(file, "w") as whole:
            for entry, blob in blobs.items():
                whole.writestr(zipfile.ZipInfo(entry, _STAMP), blob)
            whole.comment = seal(blobs[_TEXT]).encode()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{path} cannot be written ({why}): give another file or make room; the "
            "conversation continues"
        ) from error


def _refuse_others(path: Path) -> None:
    """Raises ConfigError for a file that edgecs did not save."""
    regular_size(path)
    if not path.stat().st_size:
        return
    try:
        with zipfile.ZipFile(path) as archive:
            archive.getinfo(_TEXT)
    except _NONSENSE as error:
        raise ConfigError(
            f"{path} is not a conversation that edgecs saved, so it is not replaced: "
            "give another name"
        ) from error


def read(path: Path, owner: Owner | None, *, seal: Seal = checksum) -> Saved:
    """Reads what `save` wrote. owner: the model to continue with; None: text only.

    Raises ConfigError for an unreadable file, Damaged for an invalid one, ModelError
    for another model's.
    """
    with _opened(path, seal) as (archive, text):
        if owner:
            _check_weights(path, text, owner)
        messages = restored(text["messages"], owner.tokens if owner else None)
        settings = _settings(text["settings"])
        reason = None
        if "cells" not in text:
            reason = "it was saved without its cells"
        elif owner and text["loading"] != owner.loading:
            reason = "the model was loaded with other options"
        if reason or not owner:
            return Saved(messages, settings, None, reason)
        cells = _cells(archive, text, path, owner)
    return Saved(messages, settings, cells, None)


def read_tokens(path: Path, owner: Owner, *, seal: Seal = checksum) -> list[int] | None:
    """The tokens of the cells in a file; None if `owner` cannot use them.

    The cells are not read. Raises ConfigError for an unreadable file, Damaged for an
    invalid one.
    """
    with _opened(path, seal) as (_, text):
        ours = owner.fingerprint, owner.loading
        if "cells" not in text or (text["fingerprint"], text["loading"]) != ours:
            return None
        return list(checked_ids(text["cells"]["tokens"], owner.tokens))


@contextmanager
def _opened(path: Path, seal: Seal) -> Iterator[tuple[zipfile.ZipFile, dict[str, Any]]]:
    """The archive and its text; raises ConfigError for an invalid one."""
    try:
        regular_size(path)
        with zipfile.ZipFile(path) as archive:
            yield archive, _checked_text(archive, path, seal)
    except (OSError, zipfile.LargeZipFile) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be read: {why}") from error
    except _NONSENSE as error:
        raise Damaged(
            f"{path} is not a conversation that edgecs saved, or it is damaged "
            f"({type(error).__name__}: {str(error)[:200]})"
        ) from error


def _checked_text(archive: zipfile.ZipFile, path: Path, seal: Seal) -> dict[str, Any]:
    data = _entry(archive, _TEXT, min(_LARGEST_TEXT, path.stat().st_size))
    if not hmac.compare_digest(seal(data).encode(), archive.comment):
        raise ValueError(f"{_TEXT} does not match its checksum")
    text: dict[str, Any] = json.loads(data)
    if text["format"] != FORMAT:
        raise ConfigError(
            f"{path} has the format {text['format']!r:.20}, and this edgecs reads "
            f"{FORMAT}: use the version that wrote it"
        )
    return text


def _entry(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """An uncompressed entry, which cannot be larger than the archive."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
        raise ValueError(f"{name} would unpack to {info.file_size} bytes")
    return archive.read(info)


def _settings(found: Any) -> dict[str, str]:
    settings = dict(found)
    for name, value in settings.items():
        if not isinstance(value, str) or len(value) > _LARGEST_SETTING:
            raise TypeError(f"the setting {name!r:.40} is not a short text")
    return settings


def _check_weights(path: Path, text: dict[str, Any], owner: Owner) -> None:
    if text["fingerprint"] != owner.fingerprint:
        raise ModelError(
            f"{path} is a conversation with {text['model']!s:.100}, and the model here "
            f"is {owner.model} or has other weights: load that one (-m)"
        )


def _cells(
    archive: zipfile.ZipFile, text: dict[str, Any], path: Path, owner: Owner
) -> KVSnapshot:
    size = path.stat().st_size

    def blob(name: str) -> bytes:
        data = _entry(archive, name, size)
        if checksum(data) != text["sha256"][name]:
            raise ValueError(f"{name} does not match its checksum")
        return data

    tokens = checked_ids(text["cells"]["tokens"], owner.tokens)
    at = text["cells"]["row"]
    row = None
    if at is not None:
        (at,) = checked_ids([at], len(tokens) + 2)
        row = at, np.frombuffer(blob(_ROW), dtype="<f4").astype(np.float32)
    return KVSnapshot(list(tokens), blob(_CELLS), row)
