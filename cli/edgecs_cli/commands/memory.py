"""`edgecs memory`: the texts on this machine that drafts are taken from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from edgecs.memory.consent import decide, decided
from edgecs.memory.documents import Documents
from edgecs.memory.files import as_text, text_of, texts_below
from edgecs.memory.model_files import remove_files
from edgecs.memory.store import MOST_BYTES
from edgecs.memory.store import clear as clear_all
from edgecs_cli.commands.memory_build import build
from edgecs_cli.commands.memory_shown import COMMANDS, opened, shown_files
from edgecs_cli.console import say
from edgecs_cli.options.kinds import Whole
from edgecs_cli.options.remembering import folder_option
from edgecs_cli.options.shared import reports_errors


@click.group()
def memory() -> None:
    """Keep texts on this machine that drafts are taken from.

    A model often writes again what it has written before, or what is in your files. The
    memory keeps answers and files, and proposes what followed there. It does not change
    answers, and nothing leaves this machine.

    \b
    edgecs memory on
    edgecs memory add notes.md src/
    edgecs memory build -m smollm2-135m-instruct
    edgecs memory show
    """


@memory.command()
@click.argument(
    "paths", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE|DIR]..."
)
@click.option("--clipboard", is_flag=True, help="Add the text of the clipboard.")
@folder_option
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
@click.argument("documents", nargs=-1, type=Whole(1), metavar="[DOCUMENT]...")
@click.option(
    "--only",
    type=click.Choice(["texts", "phrases", "recycling"]),
    help="Delete only the texts, the phrases of models, or the recycled rows.",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@folder_option
@reports_errors
def clear(
    documents: tuple[int, ...], only: str | None, yes: bool, folder: Path
) -> None:
    """Delete everything, or only the documents with these numbers.

    The bytes of texts are overwritten in the database. Whether answers are kept stays
    as it is.

    \b
    edgecs memory clear --yes
    edgecs memory clear 12 13
    edgecs memory clear --only phrases
    """
    if documents and only:
        raise click.UsageError("give numbers of documents or --only, not both")
    if documents:
        with opened(folder) as there:
            known = {one.id for one in there.all()} if there else set()
            gone = [number for number in documents if number in known]
            if there and gone:
                there.remove(gone)
        say(f"{len(gone)} texts deleted")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("--yes is needed to delete all without asking")
        what = {None: "everything", "recycling": "all recycled rows"}.get(
            only, f"all {only}"
        )
        click.confirm(f"Delete {what} in {folder}?", abort=True, err=True)
    parts = list[str]()
    if only in (None, "texts"):
        count = clear_all(folder)
        unread = "the memory could not be read, and was deleted"
        parts.append(unread if count is None else f"{count} texts deleted")
    for kind in ("phrases", "recycling"):
        if only in (None, kind):
            count = remove_files(folder, kind)
            if count or only:
                parts.append(f"{shown_files(kind, count)} deleted")
    say(", ".join(parts))


@memory.command("on")
@folder_option
@reports_errors
def on(folder: Path) -> None:
    """Keep the answers of models from now on.

    \b
    edgecs memory on
    """
    decide(folder, True)
    say(f"answers are kept in {folder}; edgecs memory off ends that")


@memory.command("off")
@folder_option
@reports_errors
def off(folder: Path) -> None:
    """Keep and use nothing from now on; what is there stays until it is cleared.

    \b
    edgecs memory off
    """
    decide(folder, False)
    say("the memory is off; edgecs memory clear deletes its texts")


for command in (*COMMANDS, build):
    memory.add_command(command)
