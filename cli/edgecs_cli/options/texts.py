"""Input text from a file, a pipe or standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from edgecs.core.reading import read_given, reason
from edgecs.errors import ConfigError

_LARGEST = 64 << 20  # bytes; more than any context holds


def read_text(path: Path, most: int = _LARGEST) -> str:
    """The text of a file or pipe of at most `most` bytes. Raises ConfigError."""
    return decode(read_data(path, most), str(path))


def read_data(path: Path, most: int = _LARGEST) -> bytes:
    """As `read_text`, but not decoded."""
    try:
        return read_given(path, most)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {reason(error)}") from error


def read_stdin() -> str:
    """All of standard input. Raises ConfigError."""
    data = sys.stdin.buffer.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ConfigError(
            f"standard input has more than {_LARGEST >> 20} MiB: give less text"
        )
    return decode(data, "standard input")


def decode(data: bytes, origin: str) -> str:
    """Decodes UTF-8. Raises ConfigError with the place of an invalid byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{origin} is not UTF-8 text: byte {error.start} is "
            f"0x{data[error.start]:02x}; convert it first"
        ) from error
