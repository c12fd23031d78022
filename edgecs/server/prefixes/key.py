"""The secret of a prefix cache, which authenticates its files.

llama.cpp trusts much of a saved state. A file is therefore only given to it if a server
of the same user wrote it: whoever can place a file in the folder, but cannot read the
secret there, cannot make one that is used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from edgecs.chat.archive import Seal
from edgecs.core.files import write_whole

logger = logging.getLogger("edgecs")

NAME = ".key"
_SIZE = 32  # bytes
_PATIENCE = 10.0  # seconds for another server that makes one


def seal_of(folder: Path) -> Seal:
    """The seal of the files in a folder, by its secret: keyed BLAKE2b (RFC 7693).

    The secret is made where there is none, or none that only this user can read and
    write. If it cannot be stored it lasts as long as the process.
    """
    secret = _secret(folder)

    def seal(data: bytes) -> str:
        return hashlib.blake2b(
            data, key=secret, digest_size=32, person=b"edgecs-prefixes"
        ).hexdigest()

    return seal


def _secret(folder: Path) -> bytes:
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = _read(path) or _made(path)
        if known is not None:
            return known
        why = "it is not a file that only its owner can read"
    except OSError as error:
        why = error.strerror or str(error)
    logger.warning("prefix cache: %s cannot be used: %s", path, why)
    return secrets.token_bytes(_SIZE)


def _read(path: Path) -> bytes | None:
    """The secret; None if there is none, or one of which others may know."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with suppress(OSError), open(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        private = os.name == "nt" or (
            found.st_mode & 0o077 == 0 and found.st_uid == os.getuid()
        )
        data = file.read(_SIZE + 1)
        if private and len(data) == _SIZE:
            return data
    return None


def _made(path: Path) -> bytes | None:
    """A new secret, or that of a server that has just made one. Raises OSError."""
    with FileLock(path.with_name(f"{NAME}.lock"), timeout=_PATIENCE):
        known = _read(path)
        if known is None:
            if path.is_symlink() or path.exists():
                logger.warning("prefix cache: %s is not private: replaced", path)
            write_whole(path, secrets.token_bytes(_SIZE), private=True)
            known = _read(path)
    return known
