"""Messages as they are typed, or as they come from a pipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import platformdirs

from edgecs_cli.generate import decode
from edgecs_cli.shared import say
from edgecs_cli.slash import COMMANDS, settings

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

_QUOTES = '"""'


class Reader(Protocol):
    """Gives the next message, None at the end."""

    commands: bool  # whether lines that begin with a slash are commands

    def __call__(self) -> str | None:
        """Raises ConfigError for what is no text."""


def reader(*, history: bool) -> Reader:
    """For a terminal with editing, completion and a history; else line by line."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return Typed(history=history)
    return Piped()


class Piped:
    """Every line of stdin is a message."""

    commands = False

    def __init__(self) -> None:
        self._lines = enumerate(sys.stdin.buffer, 1)

    def __call__(self) -> str | None:
        """Raises ConfigError for what is not UTF-8."""
        for n, line in self._lines:
            return decode(line, f"line {n} of standard input").rstrip("\r\n")
        return None


class Typed:
    """A prompt on the terminal.

    Ctrl-C drops what is typed. At an empty prompt the first one says how to leave, the
    second one leaves.
    """

    commands = True

    def __init__(self, *, history: bool) -> None:
        from prompt_toolkit import PromptSession

        self._prompt: PromptSession[str] = PromptSession(
            history=_history() if history else None,
            completer=_completer(),
            complete_while_typing=_on_a_command(),
            key_bindings=_bindings(),
            enable_open_in_editor=True,
        )
        self._warned = False

    def __call__(self) -> str | None:
        """What was typed; several lines between triple quotes."""
        while True:
            text = ""
            try:
                text = self._prompt.prompt("> ")
                if text.lstrip().startswith(_QUOTES):
                    text = self._quoted(text.lstrip().removeprefix(_QUOTES))
            except KeyboardInterrupt:
                if text or self._prompt.default_buffer.text:
                    self._warned = False
                    continue
                if self._warned:
                    return None
                self._warned = True
                say("Ctrl-C once more or Ctrl-D leaves")
                continue
            except EOFError:
                return None
            self._warned = False
            return text

    def stopped(self) -> None:
        """An answer was stopped with Ctrl-C: another one leaves."""
        self._warned = True

    def _quoted(self, text: str) -> str:
        """Lines up to the closing quotes."""
        lines = [text]
        while not lines[-1].rstrip().endswith(_QUOTES):
            lines.append(self._prompt.prompt("... "))
        lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
        return "\n".join(lines).strip("\n")


def _history() -> History:
    """Kept between chats, where there is room for it."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = Path(platformdirs.user_state_dir("edgecs")) / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def _completer() -> Completer:
    from prompt_toolkit.completion import NestedCompleter, PathCompleter

    after: dict[str, Any] = {
        "FILE": PathCompleter(expanduser=True),
        "PATTERN": PathCompleter(expanduser=True),
        "[on|off]": {"on": None, "off": None},
        "[auto|on|off]": {"auto": None, "on": None, "off": None},
        "[NAME VALUE]": dict.fromkeys(settings()),
    }
    return NestedCompleter.from_nested_dict(
        {name: after.get(c.takes) for c in COMMANDS for name in c.names}
    )


def _on_a_command() -> Any:
    """Completion offers itself behind a slash, and keeps out of messages."""
    from prompt_toolkit.application import get_app
    from prompt_toolkit.filters import Condition

    return Condition(lambda: get_app().current_buffer.text.startswith("/"))


def _bindings() -> KeyBindings:
    """Alt-Enter begins another line."""
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
