"""Files of a memory that belong to one model: phrases, and recycled rows.

They are derived, as the index is: one that is damaged, or of another version, can be
deleted. Their folder and they can be read by their owner only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from filelock import FileLock, Timeout

from edgecs.core.files import sweep
from edgecs.core.reading import plain, reason
from edgecs.errors import ConfigError

Kind = Literal["phrases", "recycling"]

_FOLDER, _LOCK = "models", "recycling.lock"
# chosen: longer than a table takes to be written.
_WAITS = 2.0  # seconds for another process
_NAMED = re.compile(r"[0-9a-f]{32}-(.{1,80})\.(phrases|recycling)", re.DOTALL)


class Identity(NamedTuple):
    """What a file depends on.

    name: of the model, to show. fingerprint: of its files, 32 hexadecimal digits
    (`calibrate.profile`). tokenizer: `vocabulary_hash`, 64 hexadecimal digits.
    """

    name: str
    fingerprint: str
    tokenizer: str
    vocab_size: int


class ModelFile(NamedTuple):
    """A file as it is listed. written: seconds since 1970."""

    kind: Kind
    model: str
    path: Path
    size: int
    written: int


def path_of(folder: Path, kind: Kind, model: Identity) -> Path:
    """The file of a model, also if the model was renamed since it was written."""
    below = folder / _FOLDER
    if found := sorted(below.glob(f"{model.fingerprint}-*.{kind}")):
        return found[0]
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", model.name)[:80] or "_"
    return below / f"{model.fingerprint}-{name}.{kind}"


def make_folder(path: Path) -> None:
    """Creates the folders of a file. Raises OSError."""
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def lock_of(folder: Path) -> FileLock:
    """Held while recycled rows are written or deleted; raises Timeout."""
    return FileLock(folder / _LOCK, timeout=_WAITS, mode=0o600)


def listed_files(folder: Path, kind: Kind | None = None) -> list[ModelFile]:
    """The files of all models, by kind and name; of one kind, or of both."""
    found = []
    for path in (folder / _FOLDER).glob("*"):
        named = _NAMED.fullmatch(path.name)
        if named is None or kind not in (None, named[2]):
            continue
        try:
            state = path.lstat()
        except OSError:  # it was deleted meanwhile
            continue
        (which,) = (one for one in get_args(Kind) if one == named[2])
        size, written = state.st_size, int(state.st_mtime)
        found.append(ModelFile(which, plain(named[1]), path, size, written))
    return sorted(found)


def remove_files(folder: Path, kind: Kind | None = None) -> int:
    """Deletes the files of all models, of one kind or of both; returns their number.

    Raises ConfigError.
    """
    sweep(folder / _FOLDER)  # what a killed process has not finished is private, too
    if not (files := listed_files(folder, kind)):
        return 0
    try:
        with lock_of(folder):
            for file in files:
                file.path.unlink(missing_ok=True)
    except (OSError, Timeout) as error:
        raise ConfigError(
            f"the files in {plain(str(folder / _FOLDER))} cannot be deleted "
            f"({reason(error)}): check the rights of the folder, and try again"
        ) from error
    return len(files)
