"""`edgecs memory`: the texts on this machine that drafts are taken from."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from edgecs.core.files import write_whole
from edgecs.errors import ConfigError
from edgecs.memory.consent import decide, decided
from edgecs.memory.documents import Document, Documents
from edgecs.memory.files import as_text, text_of, texts_below
from edgecs.memory.store import MOST_BYTES
from edgecs.memory.store import clear as clear_all
from edgecs.runtime.folders import Folders
from edgecs_cli.console import echo, echo_table, say
from edgecs_cli.options.kinds import Whole
from edgecs_cli.options.sections import F
from edgecs_cli.options.shared import reports_errors

_SHOWN = 40  # documents of a list
_WIDTH = 90  # characters of a line that is found

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _folder(command: F) -> F:
    """The option for another store than the user's."""
    return click.option(
        "--memory",
        "folder",
        type=click.Path(path_type=Path),
        default=lambda: Folders().memory,
        metavar="DIR",
        help="The folder of another memory than yours.",
    )(command)


@click.group()
def memory() -> None:
    """Keep texts on this machine that drafts are taken from.

    A model often writes again what it has written before, or what is in your files. The
    memory keeps answers and files, and proposes what followed there. It does not change
    answers, and nothing leaves this machine.

    \b
    edgecs memory on
    edgecs memory add notes.md src/
    edgecs memory show
    """


@memory.command()
@click.argument(
    "paths", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE|DIR]..."
)
@click.option("--clipboard", is_flag=True, help="Add the text of the clipboard.")
@_folder
@reports_errors
def add(paths: tuple[Path, ...], clipboard: bool, folder: Path) -> None:
    """Add text files, all text files of folders, or the clipboard.

    Hidden files are left out of folders. A file that was added before and has changed
    is replaced. Models read new texts when they are loaded.

    \b
    edgecs memory add notes.md
    edgecs memory add src/ docs/
    edgecs memory add --clipboard
    """
    if not paths and not clipboard:
        raise click.UsageError("give files or folders, or --clipboard")
    added = known = skipped = dropped = fresh = 0
    with Documents(folder) as documents:
        for source, text in _texts(paths, clipboard=clipboard):
            if not text or not text.strip():
                skipped += 1
                continue
            if documents.add("file", source, text) is None:
                known += 1
                continue
            added += 1
            fresh += len(text)
            if fresh > MOST_BYTES // 8:  # a folder may be larger than the memory
                dropped, fresh = dropped + documents.evict(MOST_BYTES), 0
        dropped += documents.evict(MOST_BYTES)
    parts = [f"{added} texts added"]
    parts += [f"{known} already there"] * bool(known)
    parts += [f"{skipped} without text left out"] * bool(skipped)
    parts += [f"{dropped} old ones dropped, as the memory is full"] * bool(dropped)
    say(", ".join(parts))
    if decided(folder) is False:
        say("the memory is off, so they are not used: edgecs memory on")


def _texts(
    paths: tuple[Path, ...], *, clipboard: bool
) -> Iterator[tuple[str, str | None]]:
    """Names and texts of what is added. Raises ConfigError."""
    for path in paths:
        if path.is_dir():
            for file, text in texts_below(path.absolute()):
                yield str(file), text
        else:
            yield str(path.absolute()), text_of(path)
    if clipboard:
        from edgecs_cli.clipboard import read_clipboard

        yield "clipboard", as_text(read_clipboard())


@memory.command()
@click.argument("document", type=Whole(1), required=False)
@_json
@_folder
@reports_errors
def show(document: int | None, as_json: bool, folder: Path) -> None:
    """Show what is in the memory, or the text of one document.

    \b
    edgecs memory show
    edgecs memory show 12
    edgecs memory show --json
    """
    with _opened(folder) as documents:
        known = documents.all() if documents else []
        if document is not None:
            if documents is None or document not in {one.id for one in known}:
                raise ConfigError(
                    f"the memory has no document {document}: `edgecs memory show` "
                    "lists them"
                )
            echo(documents.text(document))
            return
    if as_json:
        state = {True: "on", False: "off", None: "not decided"}[decided(folder)]
        total = sum(one.size for one in known)
        listed = [_fields(one) for one in known]
        found = {"folder": str(folder), "state": state, "bytes": total}
        echo(json.dumps({**found, "documents": listed}))
        return
    echo_table([_row(one) for one in known[:_SHOWN]], words=(1, 2))
    if len(known) > _SHOWN:
        say(f"and {len(known) - _SHOWN} older ones (--json lists all)")
    say(_about(folder, known))


def _about(folder: Path, known: list[Document]) -> str:
    """The state of the memory in a line."""
    how = {
        True: "on: answers are kept",
        False: "off: nothing is kept or used",
        None: "answers are not kept (edgecs memory on)",
    }[decided(folder)]
    size = sum(one.size for one in known) / (1 << 20)
    most = MOST_BYTES >> 20
    return f"{len(known)} texts, {size:.1f} of {most} MiB, in {folder}; {how}"


@memory.command()
@click.argument("text")
@_json
@_folder
@reports_errors
def search(text: str, as_json: bool, folder: Path) -> None:
    """Find a text in the memory, in upper or lower case.

    \b
    edgecs memory search "password"
    """
    found = list[tuple[int, str, str]]()
    with _opened(folder) as documents:
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


@memory.command()
@click.argument("documents", nargs=-1, type=Whole(1), metavar="[DOCUMENT]...")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@_folder
@reports_errors
def clear(documents: tuple[int, ...], yes: bool, folder: Path) -> None:
    """Delete all texts, or only the documents with these numbers.

    The bytes are overwritten in the database. Whether answers are kept stays as it is.

    \b
    edgecs memory clear --yes
    edgecs memory clear 12 13
    """
    if documents:
        with _opened(folder) as there:
            known = {one.id for one in there.all()} if there else set()
            gone = [number for number in documents if number in known]
            if there and gone:
                there.remove(gone)
        say(f"{len(gone)} texts deleted")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("--yes is needed to delete all texts without asking")
        click.confirm(f"Delete all texts in {folder}?", abort=True, err=True)
    count = clear_all(folder)
    unread = "the memory could not be read, and was deleted"
    say(unread if count is None else f"{count} texts deleted")


@memory.command("on")
@_folder
@reports_errors
def on(folder: Path) -> None:
    """Keep the answers of models from now on.

    \b
    edgecs memory on
    """
    decide(folder, True)
    say(f"answers are kept in {folder}; edgecs memory off ends that")


@memory.command("off")
@_folder
@reports_errors
def off(folder: Path) -> None:
    """Keep and use nothing from now on; what is there stays until it is cleared.

    \b
    edgecs memory off
    """
    decide(folder, False)
    say("the memory is off; edgecs memory clear deletes its texts")


@memory.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write to this file, for you alone to read, instead of stdout.",
)
@_folder
@reports_errors
def export(output: Path | None, folder: Path) -> None:
    """Print all texts, one JSON object a line.

    \b
    edgecs memory export -o memory.jsonl
    """
    lines = list[str]()
    with _opened(folder) as documents:
        for one in documents.all() if documents else []:
            assert documents is not None
            fields = {**_fields(one), "text": documents.text(one.id)}
            lines.append(json.dumps(fields, ensure_ascii=output is None))
    if output is None:
        for line in lines:
            echo(line)
        return
    try:
        data = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
        write_whole(output, data, private=True)
    except OSError as error:
        raise ConfigError(
            f"{output} cannot be written: {error.strerror}; give another path"
        ) from error
    say(f"{len(lines)} texts in {output}")


@contextmanager
def _opened(folder: Path) -> Iterator[Documents | None]:
    """The documents of a folder; None: there are none, and nothing is created."""
    if not folder.exists():
        yield None
        return
    with Documents(folder) as documents:
        yield documents


def _fields(one: Document) -> dict[str, Any]:
    return one._asdict()


def _row(one: Document) -> tuple[str, ...]:
    return str(one.id), one.kind, one.source, _date(one.added), _size(one.size)


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
