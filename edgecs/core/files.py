"""Atomic writes of files.

A file has a temporary name until it is complete. Temporary files of killed processes
are removed when the same file is written again, or when their folder is swept.
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
_CLOCKS = 2.0  # seconds by which a process's start and a file's time may differ


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """A temporary file beside `path`, open for writing, that replaces it on success.

    Its bytes are on the disk before it is renamed. private: readable by its owner only,
    as conversations are. Raises OSError.
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
    """Writes a file, or replaces an existing one. Raises OSError."""
    with replacing(path, private=private) as file:
        file.write(data)


def part_of(path: Path) -> Path:
    """A temporary name beside `path`, which `sweep` recognises."""
    tail = f"{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name[:_LONGEST]}.{tail}.part")


def sweep(folder: Path, name: str | None = None) -> None:
    """Removes temporary files and folders whose process has ended.

    name: of the complete file or folder; None: any.
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
    """Whether its process has ended; another one may have its id by now."""
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
