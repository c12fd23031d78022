"""Files that are there whole or not at all.

A file that is written has another name until it is whole. What a killed process left
under such a name goes when the same file is written the next time, or when its folder
is swept.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

_PART = re.compile(r"\.(.+)\.(\d{1,9})-[0-9a-f]{8}\.part", re.DOTALL)
_LONGEST = 120  # characters of a file's name in that of its part
_CLOCKS = 2.0  # seconds by which the begin of a process and a file's time may differ


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """A file beside `path`, open for writing, that takes its name when all went well.

    Its bytes are on the disk before it has the name. private: for its owner alone, as
    what was said to a model is. Raises OSError.
    """
    sweep(path.parent, path.name)
    part = part_of(path)
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


def part_of(path: Path) -> Path:
    """A name beside `path` for what is not whole yet, by which `sweep` knows it."""
    tail = f"{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name[:_LONGEST]}.{tail}.part")


def sweep(folder: Path, name: str | None = None) -> None:
    """Removes parts, files or folders, whose process is gone.

    name: of the file or folder that they are parts of; None: of any.
    """
    try:
        found = [(left, _PART.fullmatch(left)) for left in os.listdir(folder)]
    except OSError:
        return
    for left, part in found:
        if not part or (name is not None and part[1] != name[:_LONGEST]):
            continue
        if _is_left(folder / left, int(part[2])):
            _remove(folder / left)


def _is_left(part: Path, pid: int) -> bool:
    """Whether its process is gone, though another one may have the number by now."""
    try:
        began = psutil.Process(pid).create_time()
        return began > part.lstat().st_mtime + _CLOCKS
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError):
        return False


def _remove(left: Path) -> None:
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left, ignore_errors=True)
        return
    with suppress(OSError):
        left.unlink()
