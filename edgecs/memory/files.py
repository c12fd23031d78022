"""Text files that are added to a memory: one that is named, or all of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from edgecs.core.reading import plain, read_bounded, reason
from edgecs.errors import ConfigError

LARGEST = 8 << 20  # bytes of a text
# chosen: a folder with more is hardly one person's work.
MOST_FILES = 20_000  # that are looked at in a folder
# Folders of what programs have written.
_SKIPPED = frozenset(("node_modules", "__pycache__", "venv", "target", "build", "dist"))


def text_of(path: Path) -> str:
    """The text of a file. Raises ConfigError if it is not UTF-8 text."""
    try:
        raw = read_bounded(path, LARGEST)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{plain(str(path))} cannot be read: {reason(error)}; give a text file of "
            f"at most {LARGEST >> 20} MiB, or a folder"
        ) from error
    text = as_text(raw)
    if text is None:
        raise ConfigError(
            f"{plain(str(path))} is not text in UTF-8: give a text file, or convert it"
        )
    return text


def as_text(raw: bytes) -> str | None:
    """Bytes as text; None: they are something else."""
    if b"\0" in raw:
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def texts_below(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """The files of a folder with their texts, None: it is none, or unreadable.

    Hidden files and folders are left out, as they may have passwords, and so are
    folders of what programs have written. Links are not followed out of the folder.
    Raises ConfigError for too many files.
    """
    seen = 0
    for name, below, files in os.walk(folder):
        below[:] = sorted(n for n in below if n[0] != "." and n not in _SKIPPED)
        for file in sorted(files):
            path = Path(name, file)
            if file[0] == "." or path.is_symlink():
                continue
            seen += 1
            if seen > MOST_FILES:
                raise ConfigError(
                    f"{plain(str(folder))} has more than {MOST_FILES} files: give "
                    "folders in it"
                )
            try:
                raw = read_bounded(path, LARGEST)
            except (OSError, ValueError):
                yield path, None
                continue
            yield path, as_text(raw)
