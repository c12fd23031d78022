"""The value of --memory: which store of texts a command uses, and whether it adds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecs.errors import ConfigError
from edgecs_cli.console import say
from edgecs_cli.options.sections import F, Section, option

if TYPE_CHECKING:
    from edgecs.memory.keeping import Wanted


def memory_option(command: F) -> F:
    """The option for the texts that drafts are taken from."""
    return _option(
        "auto",
        "Texts that drafts are taken from (`edgecs memory`), and that answers are "
        "added to. auto: yours, if it is on. DIR: those of this folder, which is "
        "created.",
    )(command)


def audited_memory_option(command: F) -> F:
    """The same for a command that stores nothing."""
    return _option(
        "off",
        "Texts that drafts are taken from (`edgecs memory`); no answer is added. "
        "auto: yours. DIR: those of this folder.",
    )(command)


def folder_option(command: F) -> F:
    """The option for another memory than the user's, as `folder`."""

    def users() -> Path:
        from edgecs.runtime.folders import Folders

        return Folders().memory

    return click.option(
        "--memory",
        "folder",
        type=click.Path(path_type=Path),
        default=users,
        metavar="DIR",
        help="The folder of another memory than yours.",
    )(command)


def _option(default: str, about: str) -> Callable[[F], F]:
    return option(
        Section.SPECULATION,
        "--memory",
        default=default,
        show_default=True,
        metavar="auto|off|DIR",
        help=about,
    )


def wanted_store(values: Mapping[str, Any]) -> Wanted | None:
    """The store of a command's options; None: none is used.

    Without a decision of the user, texts that were added and phrases of models are
    used, and no answer is kept. A folder that is given is a decision.
    """
    choice = values.get("memory", "off")
    if choice == "off":
        return None
    from edgecs.memory.consent import decided
    from edgecs.memory.database import FILE
    from edgecs.memory.keeping import Wanted
    from edgecs.memory.model_files import listed_files
    from edgecs.runtime.folders import Folders

    keeps = not values.get("no_history")
    if choice != "auto":
        return Wanted(Path(choice), keeps)
    folder = Folders().memory
    decision = decided(folder)
    has = (folder / FILE).exists() or bool(listed_files(folder))
    if decision is False or (decision is None and not has):
        return None
    allowed = partial(_is_on, folder)
    return Wanted(folder, keeps and decision is True, allowed)


def _is_on(folder: Path) -> bool:
    from edgecs.memory.consent import decided

    return decided(folder) is True


def is_folder(values: Mapping[str, Any]) -> bool:
    """Whether a store is given that a server does not have."""
    return values.get("memory", "off") not in ("auto", "off")


def ask_once(values: Mapping[str, Any]) -> None:
    """Asks whether answers may be kept, if that was never answered on a terminal.

    What is answered is written down; Ctrl-C and Ctrl-D answer nothing.
    """
    terminal = sys.stdin.isatty() and sys.stderr.isatty()
    if values["memory"] != "auto" or values["no_history"] or not terminal:
        return
    from edgecs.memory.consent import decide, decided
    from edgecs.runtime.folders import Folders

    folder = Folders().memory
    if values["quiet"] or decided(folder) is not None:
        return
    say(
        "edgecs can keep answers on this machine and draft from them, which makes "
        f"similar answers faster. They would be in {folder}, for you alone to read, "
        "and are sent nowhere."
    )
    try:
        wanted = click.confirm("Keep answers?", default=False, err=True)
        decide(folder, wanted)
    except click.Abort:
        say("")
    except ConfigError as error:
        say(str(error))
    else:
        say(f"edgecs memory {'off' if wanted else 'on'} changes that")
