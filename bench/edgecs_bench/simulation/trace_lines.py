"""Files of traces: JSON Lines behind a line that describes them, often compressed."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import click

from edgecs.core.reading import regular_size

Line = dict[str, Any]
_T = TypeVar("_T")


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    """Writes a file atomically, compressed if its name ends in .gz."""
    part = path.with_name(f".part-{path.name}")
    with _open(part, "w") as file:
        for line in lines:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
    os.replace(part, path)


def read_lines(
    path: Path,
    wanted: str,
    made_of: Callable[[Line, Iterator[Line]], _T],
    *,
    what: str,
    described: str,
) -> _T:
    """What a function makes of a file's first line and the others.

    wanted: the format that the first line has to name. what, described: the contents,
    and the file that describes the format, for the message. Raises click.UsageError
    that names the line which the function raised for.
    """
    number = 1

    def others(file: IO[str]) -> Iterator[Line]:
        nonlocal number
        for number, line in enumerate(file, 2):  # noqa: B007, for the message
            yield json.loads(line)

    try:
        regular_size(path)
        with _open(path, "r") as file:
            head = json.loads(next(file, "{}"))
            if head["format"] != wanted:
                raise ValueError(f"its format is not {wanted}")
            return made_of(head, others(file))
    except (
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        LookupError,
        TypeError,
        RecursionError,
    ) as error:
        raise click.UsageError(
            f"{path}, line {number}: not {what}: {error!s} (the format is described in "
            f"{described})"
        ) from error


def _open(path: Path, mode: str) -> IO[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    return cast(IO[str], opened(path, f"{mode}t", encoding="utf-8"))
