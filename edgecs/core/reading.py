"""Reading untrusted input: regular files of bounded size, and values in messages."""

from __future__ import annotations

import errno
import os
import re
import select
import stat
from pathlib import Path

from edgecs.errors import ModelError

CONTROL = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
"""Line separators, terminal controls and surrogates, as part of a character class."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_SHOWN = 200  # characters of an untrusted text in a message


def regular_size(path: Path) -> int:
    """The size of a regular file, bytes; raises OSError for anything else.

    Other kinds are not opened: a pipe waits for its writer, a device may never end.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        code = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
        raise OSError(code, f"it is {kind}, not a regular file", str(path))
    return found.st_size


def check_model(path: Path) -> None:
    """Raises ModelError if a path cannot be a model's file, without opening it."""
    try:
        regular_size(path)
    except FileNotFoundError as error:
        raise ModelError(
            f"there is no file {path}: check the path of the model"
        ) from error
    except IsADirectoryError as error:
        raise ModelError(f"{path} is a folder: give the .gguf file in it") from error
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{plain(str(path))} cannot be read ({reason(error)}): check the path of "
            "the model"
        ) from error


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a regular file of `most` bytes at most; else raises OSError."""
    regular_size(path)
    with path.open("rb") as file:
        data = file.read(most + 1)  # files in /proc have the size 0
    if len(data) > most:
        raise _too_large(path, most)
    return data


def _too_large(path: Path, most: int) -> OSError:
    size = f"{most >> 20} MiB" if most >> 20 else f"{most} bytes"
    return OSError(errno.EFBIG, f"it has more than {size}", str(path))


def read_given(path: Path, most: int) -> bytes:
    """As `read_bounded`, but also reads pipes and devices, as a shell passes them.

    A named pipe without a writer reads as empty.
    """
    if os.name != "posix":
        return read_bounded(path, most)
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        data = bytearray()
        while len(data) <= most:
            try:
                part = os.read(file, most + 1 - len(data))
            except BlockingIOError:  # its writer has not written yet
                select.select([file], [], [])
                continue
            if not part:
                return bytes(data)
            data += part
    finally:
        os.close(file)
    raise _too_large(path, most)


def reason(error: BaseException) -> str:
    """The cause of an error in one line, truncated if it is long."""
    text = getattr(error, "strerror", None) or str(error)
    lines = str(text).strip().splitlines()
    return plain(lines[0] if lines else type(error).__name__)


def plain(text: str) -> str:
    """An untrusted text, escaped for a message.

    >>> plain("a\\x1b[31mb")
    'a?[31mb'
    """
    text = re.sub(f"[{CONTROL}]", "?", text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def shown(value: object) -> str:
    """The repr of an untrusted value, shortened for a message.

    >>> shown("x"), shown({"a": 1}), shown(16**5000)
    ("'x'", 'a table', 'a number of 20001 bits')
    """
    if isinstance(value, dict):  # these may be nested too deeply for repr
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    return plain(repr(value))
