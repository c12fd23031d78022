"""Files that are there whole or not at all.

A file that is written has another name until it is whole. What a killed process left
under such a name goes when the same file is written the next time.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

_NAME = ".{name}.{pid}-{random}.part"
_LONGEST = 120  # characters of a file's name in that of its part


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """A file beside `path`, open for writing, that takes its name when all went well.

    Its bytes are on the disk before it has the name. private: for its owner alone, as
    what was said to a model is. Raises OSError.
    """
    _sweep(path)
    part = path.with_name(
        _NAME.format(
            name=path.name[:_LONGEST], pid=os.getpid(), random=secrets.token_hex(4)
        )
    )
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(part, flags, 0o600 if private else 0o666), "r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes, *, private: bool = False) -> None:
    """Puts a file in place of the one that is there, if any; raises OSError."""
    with replacing(path, private=private) as file:
        file.write(data)


def _sweep(path: Path) -> None:
    """Removes parts of a file whose process is gone."""
    name = re.escape(path.name[:_LONGEST])
    part = re.compile(rf"\.{name}\.(\d{{1,9}})-[0-9a-f]{{8}}\.part")
    try:
        names = os.listdir(path.parent)
    except OSError:
        return
    for left in names:
        found = part.fullmatch(left)
        if found and not psutil.pid_exists(int(found[1])):
            path.with_name(left).unlink(missing_ok=True)
