"""`edgecs memory show|search|export`: what is in a memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from edgecs.core.files import write_whole
from edgecs.errors import ConfigError
from edgecs.memory.consent import decided
from edgecs.memory.database import FILE
from edgecs.memory.documents import Document, Documents
from edgecs.memory.model_files import ModelFile, listed_files
from edgecs.memory.recycled import exported
from edgecs.memory.store import MOST_BYTES
from edgecs_cli.console import echo, echo_table, say
from edgecs_cli.options.kinds import Whole
from edgecs_cli.options.remembering import folder_option
from edgecs_cli.options.shared import reports_errors

_SHOWN = 40  # documents of a list
_WIDTH = 90  # characters of a line that is found

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("document", type=Whole(1), required=False)
@_json
@folder_option
@reports_errors
def show(document: int | None, as_json: bool, folder: Path) -> None:
    """Show what is in the memory, or the text of one document.

    \b
    edgecs memory show
    edgecs memory show 12
    edgecs memory show --json
    """
    with opened(folder) as documents:
        known = documents.all() if documents else []
        if document is not None:
            if documents is None or document not in {one.id for one in known}:
                raise ConfigError(
                    f"the memory has no document {document}: `edgecs memory show` "
                    "lists them"
                )
            echo(documents.text(document))
            return
    models = listed_files(folder)
    if as_json:
        state = {True: "on", False: "off", None: "not decided"}[decided(folder)]
        echo(
            json.dumps(
                {
                    "folder": str(folder),
                    "state": state,
                    "bytes": sum(one.size for one in known),
                    "documents": [_fields(one) for one in known],
                    "models": [_model_fields(one) for one in models],
                }
            )
        )
        return
    rows = [_model_row(one) for one in models]
    rows += [_row(one) for one in known[:_SHOWN]]
    echo_table(rows, words=(1, 2))
    if len(known) > _SHOWN:
        say(f"and {len(known) - _SHOWN} older ones (--json lists all)")
    say(_about(folder, known, models))


def _about(folder: Path, known: Sequence[Document], models: Sequence[ModelFile]) -> str:
    """The state of the memory in a line."""
    how = {
        True: "on: answers are kept",
        False: "off: nothing is kept or used",
        None: "answers are not kept (edgecs memory on)",
    }[decided(folder)]
    size = sum(one.size for one in known) / (1 << 20)
    parts = [f"{len(known)} texts, {size:.1f} of {MOST_BYTES >> 20} MiB"]
    for kind in ("phrases", "recycling"):
        if count := sum(one.kind == kind for one in models):
            parts.append(shown_files(kind, count))
    return f"{', '.join(parts)}, in {folder}; {how}"


def shown_files(kind: str, count: int) -> str:
    """How many files of models there are, in words."""
    what = "phrases" if kind == "phrases" else "recycled rows"
    return f"{what} of {count} model{'s' * (count != 1)}"


@click.command()
@click.argument("text")
@_json
@folder_option
@reports_errors
def search(text: str, as_json: bool, folder: Path) -> None:
    """Find a text in the memory, in upper or lower case.

    \b
    edgecs memory search "password"
    """
    found = list[tuple[int, str, str]]()
    with opened(folder) as documents:
        if documents and text:
            sources = {one.id: one.source for one in documents.all()}
            for number in documents.containing(text):
                line = _line_with(documents.text(number), text)
                found.append((number, sources.get(number, ""), line))
    if as_json:
        names = ("id", "source", "line")
        rows = [dict(zip(names, one, strict=True)) for one in found]
        echo(json.dumps(rows))
        return
    echo_table(found, words=(1, 2))
    if not found:
        say("it is in no text")


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write to this file, for you alone to read, instead of stdout.",
)
@folder_option
@reports_errors
def export(output: Path | None, folder: Path) -> None:
    """Print all texts and recycled rows, one JSON object a line.

    \b
    edgecs memory export -o memory.jsonl
    """
    lines, tables = list[dict[str, Any]](), 0
    with opened(folder) as documents:
        for one in documents.all() if documents else []:
            assert documents is not None
            lines.append({**_fields(one), "text": documents.text(one.id)})
    for file in listed_files(folder, "recycling"):
        if rows := exported(file.path):
            lines.append({"kind": file.kind, "source": file.model, **rows})
            tables += 1
    if output is None:
        for line in lines:
            echo(json.dumps(line))
        return
    try:
        texts = (json.dumps(line, ensure_ascii=False) for line in lines)
        data = "".join(f"{text}\n" for text in texts).encode("utf-8", "replace")
        write_whole(output, data, private=True)
    except OSError as error:
        raise ConfigError(
            f"{output} cannot be written: {error.strerror}; give another path"
        ) from error
    more = f" and {shown_files('recycling', tables)}" if tables else ""
    say(f"{len(lines) - tables} texts{more} in {output}")


@contextmanager
def opened(folder: Path) -> Iterator[Documents | None]:
    """The documents of a folder; None: there are none, and nothing is created."""
    if not (folder / FILE).exists():
        yield None
        return
    with Documents(folder) as documents:
        yield documents


def _fields(one: Document) -> dict[str, Any]:
    return one._asdict()


def _model_fields(one: ModelFile) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "model": one.model,
        "bytes": one.size,
        "written": one.written,
    }


def _row(one: Document) -> tuple[str, ...]:
    return str(one.id), one.kind, one.source, _date(one.added), _size(one.size)


def _model_row(one: ModelFile) -> tuple[str, ...]:
    return "-", one.kind, one.model, _date(one.written), _size(one.size)


def _date(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):  # of a damaged database
        return "-"


def _size(size: int) -> str:
    return f"{size / 1024:.1f} KiB"


def _line_with(text: str, wanted: str) -> str:
    """The part of a line around the first occurrence of a text."""
    at = max(0, text.lower().find(wanted.lower()))
    start = text.rfind("\n", 0, at) + 1
    start = max(start, at - _WIDTH // 3)
    return text[start : start + _WIDTH].partition("\n")[0].strip()


COMMANDS = (show, search, export)
