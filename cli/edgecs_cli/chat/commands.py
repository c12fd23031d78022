"""The slash commands of a chat."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from typing import NamedTuple

from edgecs.errors import ConfigError
from edgecs_cli.chat.deck import Deck
from edgecs_cli.chat.file_commands import attach, attach_all, copy, load, save
from edgecs_cli.chat.setting_commands import (
    change,
    set_spec,
    settings,
    show,
    toggle_explain,
    toggle_stats,
)
from edgecs_cli.chat.turn_commands import (
    clear,
    edit,
    leave,
    regenerate,
    switch_model,
    system,
    undo,
)
from edgecs_cli.console import columns, echo, say, wrapped


def run(deck: Deck, line: str) -> None:
    """Runs a line such as "/set seed 3". Raises ConfigError, Leave."""
    name, _, rest = line.strip().partition(" ")
    command = _BY_NAME.get(name)
    if command is None:
        near = difflib.get_close_matches(name, _BY_NAME, n=1)
        hint = f"did you mean {near[0]}?" if near else "/help lists them all"
        raise ConfigError(
            f"there is no command {name}: {hint} (// begins a message with a slash)"
        )
    command.does(deck, rest.strip())


def show_help(deck: Deck, rest: str) -> None:
    """Lists the commands."""
    width = 2 + max(len(_usage(command)) for command in COMMANDS)
    for command in COMMANDS:
        line = f"{_usage(command):{width}}{command.help}"
        echo(wrapped(line, columns(sys.stderr), " " * width), err=True)
    say('Alt-Enter: a new line. """ begins and ends a message of several lines.')
    say("Ctrl-C stops an answer, Ctrl-D leaves.")


def change_setting(deck: Deck, rest: str) -> None:
    """Changes a setting; without a name, shows all settings."""
    name, _, value = rest.removeprefix("parameter ").strip().partition(" ")
    command = _BY_NAME.get(f"/{name}")
    if value and command and name not in settings():
        raise ConfigError(f"{name} is a command: /{name} {command.takes}".rstrip())
    change(deck, rest)


class Command(NamedTuple):
    """A command: its names, its arguments and what it does."""

    names: tuple[str, ...]
    takes: str
    does: Callable[[Deck, str], None]

    @property
    def help(self) -> str:
        """One line for /help."""
        return (self.does.__doc__ or "").strip()


COMMANDS = (
    Command(("/help", "/?"), "", show_help),
    Command(("/exit", "/bye", "/quit"), "", leave),
    Command(("/clear",), "", clear),
    Command(("/regen",), "", regenerate),
    Command(("/undo",), "", undo),
    Command(("/edit",), "", edit),
    Command(("/system",), "[TEXT]", system),
    Command(("/set",), "[NAME VALUE]", change_setting),
    Command(("/show",), "", show),
    Command(("/save",), "FILE", save),
    Command(("/load",), "FILE", load),
    Command(("/read",), "FILE", attach),
    Command(("/glob",), "PATTERN", attach_all),
    Command(("/copy",), "", copy),
    Command(("/stats", "/tps"), "[on|off]", toggle_stats),
    Command(("/spec",), "[auto|on|off]", set_spec),
    Command(("/explain",), "[on|off]", toggle_explain),
    Command(("/model",), "[MODEL]", switch_model),
)
_BY_NAME = {name: command for command in COMMANDS for name in command.names}


def _usage(command: Command) -> str:
    return f"{', '.join(command.names)} {command.takes}".strip()
