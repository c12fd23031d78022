"""The journal of a resumable run: finished parts, one JSON object per line."""

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
    """The finished parts of a run, after a header that describes the run.

    path: None: nothing is stored. An incomplete last line is ignored. Raises
    click.UsageError if the file belongs to a run with other options or is not a
    journal; the file is then not changed.
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
            else:  # a file with half a header could not be resumed
                write_whole(path, _line(header))
        except (OSError, *_NOT_ONE) as error:
            raise _refusal(path, error) from error

    def add(self, key: list[Any], done: dict[str, Any]) -> None:
        """Stores a part. Raises click.ClickException if the file cannot be written."""
        self.done[str(key)] = done
        try:
            self._write({"key": key, "done": done})
        except OSError as error:
            raise click.ClickException(
                f"{self._path} cannot be written: {error.strerror}; what it has can be "
                "resumed"
            ) from error

    def _resume(self, path: Path, header: dict[str, Any]) -> None:
        """Loads the finished parts; all are read before the file is changed."""
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
    """Raises click.UsageError for an existing file that is not a journal."""
    try:
        if _is_begun(path):
            with path.open("rb") as file:
                _header(file)
    except (OSError, *_NOT_ONE) as error:
        raise _refusal(path, error) from error


def _is_begun(path: Path) -> bool:
    """Whether a file is not empty; OSError if it is not a regular file."""
    if not path.exists():
        return False
    regular_size(path)
    return path.stat().st_size > 0


def _header(file: IO[bytes]) -> dict[str, Any]:
    """The header in the first line; raises one of _NOT_ONE."""
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
