"""A run that may be interrupted: what is done, one JSON object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Any

import click

from edgecs.core.files import write_whole
from edgecs.core.reading import regular_size

_LONGEST = 1 << 20  # bytes of a header
_NOT_ONE = (ValueError, KeyError, TypeError, RecursionError)


class Journal:
    """The parts of a run that are done, behind a header that says what run it is.

    path: None: nothing is kept. A last line that was cut off while it was written
    counts as not there. Raises click.UsageError where the file is of a run with other
    options, or not a journal: then it stays as it is.
    """

    def __init__(self, path: Path | None, header: dict[str, Any]) -> None:
        self.done: dict[str, dict[str, Any]] = {}  # by key, as text
        self._path = path
        if path is None:
            return
        header = json.loads(json.dumps(header))
        try:
            if _is_begun(path):
                self._resume(path, header)
            elif path.exists():
                self._write(header)
            else:  # half a header would be a file that cannot be resumed
                write_whole(path, _line(header))
        except (OSError, *_NOT_ONE) as error:
            raise _refusal(path, error) from error

    def add(self, key: list[Any], done: dict[str, Any]) -> None:
        """Keeps a part. Raises click.ClickException where the file takes no more."""
        self.done[str(key)] = done
        try:
            self._write({"key": key, "done": done})
        except OSError as error:
            raise click.ClickException(
                f"{self._path} cannot be written: {error.strerror}; what it has can be "
                "resumed"
            ) from error

    def _resume(self, path: Path, header: dict[str, Any]) -> None:
        """Takes over what is done; all of it is read before the file is changed."""
        with path.open("rb") as file:
            self._check(_header(file), header)
            start, rest = file.tell(), file.read()
        end = rest.rfind(b"\n") + 1
        for line in rest[:end].splitlines():
            fields = json.loads(line)
            self.done[str(fields["key"])] = dict(fields["done"])
        os.truncate(path, start + end)

    def _write(self, fields: dict[str, Any]) -> None:
        if self._path:
            with self._path.open("ab") as file:
                file.write(_line(fields))

    def _check(self, found: dict[str, Any], header: dict[str, Any]) -> None:
        names = sorted(found.keys() | header.keys())
        other = [name for name in names if found.get(name) != header.get(name)]
        if other:
            raise click.UsageError(
                f"{self._path} is of a run with other options ({', '.join(other)}): "
                "give those, or another file"
            )


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def check_journal(path: Path) -> None:
    """Raises click.UsageError for a file that is there and cannot be a journal."""
    try:
        if _is_begun(path):
            with path.open("rb") as file:
                _header(file)
    except (OSError, *_NOT_ONE) as error:
        raise _refusal(path, error) from error


def _is_begun(path: Path) -> bool:
    """Whether a file has anything in it; OSError for what is not a plain file."""
    if not path.exists():
        return False
    regular_size(path)
    return path.stat().st_size > 0


def _header(file: IO[bytes]) -> dict[str, Any]:
    """The first line; raises one of _NOT_ONE."""
    line = file.readline(_LONGEST)
    header = json.loads(line)
    if not (line.endswith(b"\n") and isinstance(header, dict)):
        raise ValueError("the first line is not a header")
    return header


def _refusal(path: Path, error: Exception) -> click.UsageError:
    why = "it is not a journal of `edgecs bench`"
    if isinstance(error, OSError):
        why = str(error.strerror)
    return click.UsageError(f"{path} cannot be resumed: {why}; give another file")
