"""Reads messages from a terminal or from a pipe."""

from __future__ import annotations

import atexit
import os
import re
import select
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import platformdirs

from edgecs.core.reading import regular_size
from edgecs_cli.chat.commands import COMMANDS
from edgecs_cli.chat.setting_commands import settings
from edgecs_cli.console import say
from edgecs_cli.options.shared import Interrupt
from edgecs_cli.options.texts import decode

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

_QUOTES = '"""'
_LEAVES = "\x04"  # Ctrl-D
_AHEAD = 1 << 16  # bytes of input typed during an answer
_KEYS = re.compile(
    r"\x1b(\[[0-?]*[ -/]*[@-~]|O.|.)?"
)  # escape sequences, as of arrow keys


class Reader(Protocol):
    """Returns the next message, None at the end."""

    commands: bool  # whether lines that begin with a slash are commands

    def __call__(self) -> str | None:
        """Raises ConfigError for invalid text; the next call continues after it."""

    def answered(self, *, stopped: bool) -> None:
        """Called when an answer has ended. stopped: by Ctrl-C."""

    def usual(self) -> AbstractContextManager[None]:
        """A context in which the terminal has its original modes."""


def reader(*, history: bool) -> Reader:
    """On a terminal with editing, completion and a history; else line by line."""
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

    def answered(self, *, stopped: bool) -> None:
        """Does nothing: a pipe is read to its end."""

    def usual(self) -> AbstractContextManager[None]:
        """A pipe has no modes."""
        return nullcontext()


class Typed:
    """A prompt on the terminal.

    Ctrl-C clears the input. At an empty prompt the first one says how to leave, the
    second one leaves. Between prompts the terminal echoes nothing: input typed during
    an answer appears in the next prompt, and is not sent.
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
        self._ahead = ""  # typed during an answer
        self._modes = _Modes()

    def __call__(self) -> str | None:
        """The next message; it has several lines between triple quotes."""
        while True:
            text = ""
            try:
                ahead, self._ahead = self._ahead, ""
                if ahead == _LEAVES:
                    return None
                text = self._line("> ", ahead.replace(_LEAVES, ""))
                if text.lstrip().startswith(_QUOTES):
                    text = self._quoted(text.lstrip().removeprefix(_QUOTES))
            except KeyboardInterrupt:
                if text or self._prompt.default_buffer.text:
                    self._warned = False
                    continue
                if self._warned:
                    return None
                self._warned = True
                say("press Ctrl-C again or Ctrl-D to leave")
                continue
            except EOFError:
                return None
            self._warned = False
            return text

    def answered(self, *, stopped: bool) -> None:
        """After Ctrl-C another one leaves, and input typed meanwhile is lost."""
        self._warned = stopped
        ahead = self._modes.typed_ahead()
        self._ahead = "" if stopped else ahead

    def usual(self) -> AbstractContextManager[None]:
        """The terminal as it was before the chat."""
        return self._modes.usual()

    def _line(self, sign: str, default: str = "") -> str:
        """Reads a line. Ctrl-C while the prompt appears counts as typed there.

        asyncio, which the prompt uses, cannot be interrupted while it starts.
        """
        from prompt_toolkit.application import get_app

        with Interrupt(insists=False) as stopped:

            def appeared() -> None:
                if stopped.is_set():
                    get_app().exit(exception=KeyboardInterrupt())

            return self._prompt.prompt(sign, default=default, pre_run=appeared)

    def _quoted(self, text: str) -> str:
        """Lines up to the closing quotes."""
        lines = [text]
        while not lines[-1].rstrip().endswith(_QUOTES):
            lines.append(self._line("... "))
        lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
        return "\n".join(lines).strip("\n")


class _Modes:
    """Terminal modes without echo and line buffering; Ctrl-C works.

    Does nothing on Windows, which has no such modes.
    """

    def __init__(self) -> None:
        self._terminal = sys.stdin.fileno()
        if sys.platform != "win32":
            import termios

            self._before = termios.tcgetattr(self._terminal)
            self._quiet = termios.tcgetattr(self._terminal)
            self._quiet[3] &= ~(termios.ECHO | termios.ICANON)
            self._set(self._quiet)
            atexit.register(self._set, self._before)

    def _set(self, modes: list[Any]) -> None:
        import termios

        with suppress(termios.error, OSError):  # the terminal may be gone
            termios.tcsetattr(self._terminal, termios.TCSANOW, modes)

    @contextmanager
    def usual(self) -> Iterator[None]:
        """A context with the original modes."""
        if sys.platform == "win32":
            yield
            return
        self._set(self._before)
        try:
            yield
        finally:
            self._set(self._quiet)

    def typed_ahead(self) -> str:
        """Text waiting to be read, without keys that are not text."""
        data = b""
        while sys.platform != "win32" and len(data) < _AHEAD:
            if not select.select([self._terminal], [], [], 0)[0]:
                break
            more = os.read(self._terminal, _AHEAD)
            if not more:
                break
            data += more
        return _edited(_KEYS.sub("", data.decode("utf-8", "ignore")))


def _edited(keys: str) -> str:
    r"""The line after these keys; Enter does not send it.

    >>> _edited("helo\x7flo\r")
    'hello'
    """
    text: list[str] = []
    for key in keys.replace("\r", "\n"):
        if key in "\b\x7f":
            del text[-1:]
        elif key.isprintable() or key in "\n\t" + _LEAVES:
            text.append(key)
    return "".join(text).rstrip("\n")


def _history() -> History:
    """Saved between chats, unless the file cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = Path(platformdirs.user_state_dir("edgecs")) / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        regular_size(path)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def _completer() -> Completer:
    """Completes commands and their arguments."""
    from prompt_toolkit.completion import (
        Completer,
        Completion,
        PathCompleter,
        WordCompleter,
    )

    files = PathCompleter(expanduser=True)
    after: dict[str, Completer] = {
        "FILE": files,
        "PATTERN": files,
        "[MODEL]": files,
        "[on|off]": WordCompleter(["on", "off"]),
        "[auto|on|off]": WordCompleter(["auto", "on", "off"]),
        "[NAME VALUE]": WordCompleter(settings()),
    }
    takes = {name: after.get(c.takes) for c in COMMANDS for name in c.names}

    class Commands(Completer):
        def get_completions(self, document: Any, event: Any) -> Iterator[Completion]:
            text = document.text_before_cursor
            name, blank, rest = text.partition(" ")
            if not text.startswith("/") or "\n" in text:
                return
            if not blank:
                for known in takes:
                    if known.startswith(name):
                        yield Completion(known, start_position=-len(name))
            elif inner := takes.get(name):
                from prompt_toolkit.document import Document

                here = Document(rest.lstrip())
                yield from inner.get_completions(here, event)

    return Commands()


def _on_a_command() -> Any:
    """Completes while typing only in a command, not in a message."""
    from prompt_toolkit.application import get_app
    from prompt_toolkit.filters import Condition

    return Condition(lambda: get_app().current_buffer.text.startswith("/"))


def _bindings() -> KeyBindings:
    """Alt-Enter starts a new line, Tab completes."""
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add("tab")
    def _(event: Any) -> None:
        """Applies the only completion, or selects the next of several."""
        buffer = event.current_buffer
        state = buffer.complete_state
        if state is None:
            buffer.start_completion(insert_common_part=True)
        elif len(state.completions) == 1:
            buffer.apply_completion(state.completions[0])
        else:
            buffer.complete_next()

    return bindings
