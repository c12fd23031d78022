"""A run that may be interrupted: what is done, one JSON object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click


class Journal:
    """The parts of a run that are done, behind a header that says what run it is.

    path: None: nothing is kept. A line that was cut off while it was written counts as
    not there. Raises click.UsageError where the file is of a run with other options.
    """

    def __init__(self, path: Path | None, header: dict[str, Any]) -> None:
        self.done: dict[str, dict[str, Any]] = {}  # by key, as text
        self._path = path
        header = json.loads(json.dumps(header))
        try:
            lines = self._whole_lines()
            if not lines:
                self._write(header)
                return
            self._check(json.loads(lines[0]), header)
            for line in lines[1:]:
                fields = json.loads(line)
                self.done[str(fields["key"])] = dict(fields["done"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise click.UsageError(f"{path} cannot be resumed: {error!r}") from error

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

    def _whole_lines(self) -> list[bytes]:
        if self._path is None or not self._path.exists():
            return []
        data = self._path.read_bytes()
        end = data.rfind(b"\n") + 1
        if data and not end:
            raise ValueError("it is no journal of a bench")
        os.truncate(self._path, end)
        return data[:end].splitlines()

    def _write(self, fields: dict[str, Any]) -> None:
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(fields) + "\n")

    def _check(self, found: dict[str, Any], header: dict[str, Any]) -> None:
        names = sorted(found.keys() | header.keys())
        other = [name for name in names if found.get(name) != header.get(name)]
        if other:
            raise click.UsageError(
                f"{self._path} is of a run with other options ({', '.join(other)}): "
                "give those, or another file"
            )
