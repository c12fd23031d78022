"""A conversation in a file, with the cells that were computed for it.

A zip archive: `conversation.json`, and where the engine gives its cells away
`cells.bin` and `row.npy`, the row that a regenerated answer starts from. With the same
model and the same way to load it, going on is going on: the cells come back bit for
bit. Loaded in another way the conversation is read again; with other weights it is
refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecs.cells import Cells
from edgecs.conversation import Message, restored
from edgecs.errors import ConfigError, ModelError

FORMAT = 1
_TEXT, _CELLS, _ROW = "conversation.json", "cells.bin", "row.npy"
_LARGEST_TEXT = 256 << 20  # bytes
_NONSENSE = (
    zipfile.BadZipFile,
    zlib.error,
    KeyError,
    TypeError,
    ValueError,
    EOFError,
    NotImplementedError,  # another kind of compression
    RuntimeError,  # encrypted
    RecursionError,
    AttributeError,
)
_STAMP = (1980, 1, 1, 0, 0, 0)  # of all entries, so that equal contents are equal files


@dataclass(frozen=True)
class Owner:
    """Whose conversation it is: weights, by fingerprint, and how they were loaded.

    Cells of another `loading` are of no use.
    """

    model: str
    fingerprint: str
    loading: str


@dataclass(frozen=True)
class Saved:
    """What was in a file. cells: None, where they cannot be used, for the `reason`."""

    messages: list[Message]
    settings: dict[str, Any]
    cells: Cells | None
    reason: str | None


def save(
    path: Path,
    messages: Sequence[dict[str, Any]],
    owner: Owner,
    cells: Cells | None,
    settings: dict[str, Any] | None = None,
) -> None:
    """Writes a conversation (`Conversation.state`); a file is there whole or as before.

    settings: plain values that come back with it. Raises ConfigError where the disk
    does not take it.
    """
    text: dict[str, Any] = {
        "format": FORMAT,
        **vars(owner),
        "messages": list(messages),
        "settings": settings or {},
    }
    blobs: dict[str, bytes] = {}
    if cells:
        blobs[_CELLS] = cells.data
        row = None
        if cells.row:
            row, stream = cells.row[0], io.BytesIO()
            np.save(stream, cells.row[1], allow_pickle=False)
            blobs[_ROW] = stream.getvalue()
        text["cells"] = {"tokens": cells.tokens, "row": row}
        text["sha256"] = {name: _hash(blob) for name, blob in blobs.items()}
    blobs[_TEXT] = json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        part = Path(name)
        with os.fdopen(handle, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for entry, blob in blobs.items():
                    archive.writestr(zipfile.ZipInfo(entry, _STAMP), blob)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}): give another file or make "
            "room; the conversation goes on"
        ) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def read(path: Path, owner: Owner) -> Saved:
    """What `save` wrote. Raises ConfigError for what is none, ModelError for another
    model's.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(_TEXT).file_size > _LARGEST_TEXT:
                raise ValueError("its text is too large")
            text = json.loads(archive.read(_TEXT))
            if text["format"] != FORMAT:
                raise ConfigError(
                    f"{path} has the format {text['format']!r}, this edgecs reads "
                    f"{FORMAT}: use the version that wrote it"
                )
            _check_weights(path, text, owner)
            messages = restored(text["messages"])
            settings = dict(text["settings"])
            if "cells" not in text:
                return Saved(messages, settings, None, "it was saved without its cells")
            if text["loading"] != owner.loading:
                reason = "the model was loaded in another way then"
                return Saved(messages, settings, None, reason)
            cells = _cells(archive, text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except _NONSENSE as error:
        raise ConfigError(
            f"{path} is no conversation that edgecs saved, or it is damaged "
            f"({type(error).__name__}: {error})"
        ) from error
    return Saved(messages, settings, cells, None)


def _check_weights(path: Path, text: dict[str, Any], owner: Owner) -> None:
    if text["fingerprint"] != owner.fingerprint:
        raise ModelError(
            f"{path} is a conversation with {text['model']}, and the model here is "
            f"{owner.model} or has other weights: load that one (-m)"
        )


def _cells(archive: zipfile.ZipFile, text: dict[str, Any]) -> Cells:
    def blob(name: str) -> bytes:
        data = archive.read(name)
        if _hash(data) != text["sha256"][name]:
            raise ValueError(f"{name} is not what was written")
        return data

    tokens = [int(token) for token in text["cells"]["tokens"]]
    at = text["cells"]["row"]
    row = None
    if at is not None:
        values = np.load(io.BytesIO(blob(_ROW)), allow_pickle=False)
        row = int(at), np.asarray(values, dtype=np.float32)
    return Cells(tokens, blob(_CELLS), row)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
