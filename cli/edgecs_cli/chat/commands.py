"""The slash commands of a chat."""

from __future__ import annotations

import difflib
import glob
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple, cast, get_args

import click

from edgecs.chat.overflow import Overflow
from edgecs.errors import ConfigError
from edgecs.sampling.settings import Sampling
from edgecs_cli.chat.model import Spec, Talk
from edgecs_cli.console import (
    Painted,
    columns,
    echo,
    has_colours,
    say,
    to_clipboard,
    wrapped,
)
from edgecs_cli.loading.describe import answer_details, details, start_line
from edgecs_cli.loading.explain import legend
from edgecs_cli.options.texts import read_text
from edgecs_cli.short_lines import answer_line

_LARGEST = 4 << 20  # bytes of the files attached to a message
_MOST_FILES, _MOST_PLACES = 100, 10_000  # that match a pattern, and that are visited
_CODE = re.compile(r"^```[^\n]*\n(.*?)^```", re.M | re.S)
_NUMBERS = {f.name: f for f in fields(Sampling) if isinstance(f.default, int | float)}
_OWN = ("max_tokens", "overflow", "markdown", "think")


class Leave(Exception):
    """Ends the chat, or continues it with another model."""

    def __init__(self, model: str | None = None) -> None:
        super().__init__()
        self.model = model


class Deck:
    """The state of a chat on the screen, and the commands that act on it.

    answer: shows an answer of `Talk`. lent: a context in which an editor has the
    terminal. talk: replaced when the model changes. attached: texts that precede the
    next message.
    """

    def __init__(
        self,
        talk: Talk,
        answer: Callable[..., None],
        lent: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.talk, self.answer, self._lent = talk, answer, lent
        self.attached: list[str] = []
        self.explain = False
        self.stats = True
        self.markdown = True
        self.folds = True

    def run(self, line: str) -> None:
        """Runs a line such as "/set seed 3". Raises ConfigError, Leave."""
        name, _, rest = line.strip().partition(" ")
        command = _BY_NAME.get(name)
        if command is None:
            near = difflib.get_close_matches(name, _BY_NAME, n=1)
            hint = f"did you mean {near[0]}?" if near else "/help lists them all"
            raise ConfigError(
                f"there is no command {name}: {hint} (// begins a message with a slash)"
            )
        command.does(self, rest.strip())

    # One method for each command.

    def help(self, rest: str) -> None:
        """Lists the commands."""
        width = 2 + max(len(_usage(command)) for command in COMMANDS)
        for command in COMMANDS:
            line = f"{_usage(command):{width}}{command.help}"
            echo(wrapped(line, columns(sys.stderr), " " * width), err=True)
        say('Alt-Enter: a new line. """ begins and ends a message of several lines.')
        say("Ctrl-C stops an answer, Ctrl-D leaves.")

    def exit(self, rest: str) -> None:
        """Leaves the chat."""
        raise Leave

    def model(self, rest: str) -> None:
        """Switches to another model and keeps the conversation."""
        if not rest:
            say(start_line(self.talk.now))
            return
        self.talk.find(rest)  # a wrong name fails before this model is unloaded
        raise Leave(rest)

    def clear(self, rest: str) -> None:
        """Clears the conversation but not the system message."""
        messages = self.talk.chat.conversation.messages
        messages[:] = [m for m in messages if m.role == "system"]
        self.attached.clear()
        say("the conversation was cleared")

    def regen(self, rest: str) -> None:
        """Regenerates the last answer."""
        if self.talk.sampling.is_greedy:
            say(
                "greedy: the answer will be the same (/set temperature 0.8 for another)"
            )
        self.answer(self.talk.again)

    def undo(self, rest: str) -> None:
        """Removes the last message and its answer."""
        gone = self.talk.chat.undo()
        if not gone:
            raise ConfigError("there is nothing to undo: no message was sent yet")
        say(f"removed: {_short(gone[0].content)}")

    def edit(self, rest: str) -> None:
        """Edits the last message in $EDITOR and sends it again."""
        asked = [m.content for m in self.talk.chat.messages if m.role == "user"]
        try:
            with self._lent():
                text = click.edit(asked[-1] if asked else "", extension=".md")
        except click.ClickException as error:
            raise ConfigError(
                f"no editor could be started ({error.format_message()}): set EDITOR"
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"the edited text is not UTF-8 (byte {error.start}): edit it again"
            ) from error
        if text is None or not text.strip():
            say("nothing was changed")
            return
        self.talk.chat.undo()
        self.answer(lambda: self.talk.ask(text.rstrip("\n")))

    def system(self, rest: str) -> None:
        """Shows or changes the system message; none: removes it."""
        talk = self.talk.chat.conversation
        if rest:
            talk.set_system(None if rest == "none" else rest)
        first = talk.messages[0] if talk.messages else None
        has = first is not None and first.role == "system"
        say(f"system: {first.content}" if first and has else "system: none")

    def set(self, rest: str) -> None:
        """Changes a setting; without a name, shows all settings."""
        words = rest.removeprefix("parameter ").split(None, 1)
        if len(words) < 2:
            self.show("")
            return
        name, value = words[0].replace("-", "_"), words[1].strip()
        name = {"temp": "temperature", "predict": "max_tokens"}.get(name, name)
        if name == "max_tokens":
            number = _number(name, value, whole=True)
            self.talk.chat.max_tokens = None if number < 0 else int(number)
        elif name == "overflow":
            _one_of(name, value, get_args(Overflow))
            self.talk.chat.overflow = cast(Overflow, value)
        elif name == "markdown":
            self.markdown = _switch(name, value)
        elif name == "think":
            self.folds = not _switch(name, value)
        elif name in _NUMBERS:
            whole = isinstance(_NUMBERS[name].default, int)
            self.talk.set_sampling(name, _number(name, value, whole=whole))
        else:
            if command := _BY_NAME.get(f"/{name}"):
                raise ConfigError(
                    f"{name} is a command: /{name} {command.takes}".rstrip()
                )
            known = settings()
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"there is no setting {name!r}: {hint}")
        say(f"{name} = {value}")

    def show(self, rest: str) -> None:
        """Shows the model, the settings, and the tokens so far."""
        talk, default = self.talk, Sampling()
        say(start_line(talk.now))
        for line in details(talk.now):
            say(line)
        changed = [
            f"{name} {_plainly(getattr(talk.sampling, name))}"
            for name in _NUMBERS
            if getattr(talk.sampling, name) != getattr(default, name)
        ]
        say(f"sampling settings: {', '.join(changed) or 'greedy'}")
        chat = talk.chat
        own = {
            "max_tokens": "none" if chat.max_tokens is None else chat.max_tokens,
            "overflow": chat.overflow,
            "speculation": talk.spec,
            "explain": _onoff(self.explain),
            "stats": _onoff(self.stats),
            "markdown": _onoff(self.markdown),
            "think": _onoff(not self.folds),
        }
        say(" | ".join(f"{name}: {value}" for name, value in own.items()))
        out = sum(m.left_out for m in chat.messages)
        used, room = talk.tokens(), talk.session.target.n_ctx
        note = f", {out} of them left out of the context" if out else ""
        say(f"{len(chat.messages)} messages{note}; {used} of {room} tokens of context")

    def save(self, rest: str) -> None:
        """Saves the conversation to a file, with its KV cells."""
        path = _path(rest, "/save talk.edgecs")
        self.talk.save(path)
        size = path.stat().st_size / (1 << 20)
        count = len(self.talk.chat.messages)
        say(f"{count} messages were saved to {path} ({size:.1f} MiB)")

    def load(self, rest: str) -> None:
        """Loads the conversation in a file."""
        path = _path(rest, "/load talk.edgecs")
        reason = self.talk.load(path)
        messages = self.talk.chat.messages
        note = f"; recomputed because {reason}" if reason else ""
        say(f"{len(messages)} messages from {path}{note}")
        for message in messages[-2:]:
            say(f"{message.role}: {_short(message.content, 200)}")

    def read(self, rest: str) -> None:
        """Attaches a text file to the next message."""
        path = _path(rest, "/read notes.txt")
        self._attach(path, read_text(path, _LARGEST))

    def glob(self, rest: str) -> None:
        """Attaches all matching files to the next message."""
        if not rest:
            raise ConfigError("no pattern was given: give one, as in /glob src/*.py")
        found = _matches(rest)
        if not found:
            raise ConfigError(f"no file matches {rest}: check the pattern")
        texts = [read_text(path, _LARGEST) for path in sorted(found)]
        size = sum(map(len, texts))
        if size > _LARGEST:
            raise ConfigError(
                f"the files that match {rest} have {size >> 20} MiB, more than "
                f"{_LARGEST >> 20}: give fewer"
            )
        for path, text in zip(sorted(found), texts, strict=True):
            self._attach(path, text)

    def copy(self, rest: str) -> None:
        """Copies the last block of code, or the whole last answer."""
        said = [m.content for m in self.talk.chat.messages if m.role == "assistant"]
        if not said:
            raise ConfigError("there is no answer to copy yet")
        blocks = _CODE.findall(said[-1])
        text = blocks[-1] if blocks else said[-1]
        to_clipboard(text)
        what = "the last code block" if blocks else "the last answer"
        say(f"{what} ({len(text)} characters) was copied to the clipboard")

    def toggle_stats(self, rest: str) -> None:
        """Shows statistics of the last answer; on, off: of each."""
        if rest:
            self.stats = _switch("stats", rest)
            say(f"stats: {_onoff(self.stats)}")
            return
        session = self.talk.session
        if not session.stats.tokens:
            say("there is no answer yet with these settings")
            return
        say(answer_line(session.stats, self.talk.chat.finish_reason))
        for line in answer_details(session):
            say(line)
        for line in legend(
            session, self.talk.now.tiers, colours=has_colours(sys.stderr)
        ):
            _tell(line)

    def set_spec(self, rest: str) -> None:
        """auto: draft where it pays; on: always; off: never."""
        if rest:
            _one_of("spec", rest, get_args(Spec))
            self.talk.set_spec(cast(Spec, rest))
        chain = " <- ".join(self.talk.session.chain)
        say(f"speculation: {self.talk.spec}" + (f", {chain}" if rest != "off" else ""))

    def toggle_explain(self, rest: str) -> None:
        """Shows which model wrote which part of an answer."""
        self.explain = _switch("explain", rest) if rest else not self.explain
        say(f"explain: {_onoff(self.explain)}")
        if self.explain and self.talk.session.stats.tokens:
            session, colours = self.talk.session, has_colours(sys.stderr)
            lines = legend(session, self.talk.now.tiers, colours=colours)
            for line in lines[: 1 + len(session.chain)]:
                _tell(line)

    def _attach(self, path: Path, text: str) -> None:
        self.attached.append(f"{path.name}:\n```\n{text.rstrip()}\n```")
        say(f"{path} ({len(text)} characters) is attached to your next message")


class Command(NamedTuple):
    """A command: its names, its arguments and its method."""

    names: tuple[str, ...]
    takes: str
    does: Callable[[Deck, str], None]

    @property
    def help(self) -> str:
        """One line for /help."""
        return (self.does.__doc__ or "").strip()


COMMANDS = (
    Command(("/help", "/?"), "", Deck.help),
    Command(("/exit", "/bye", "/quit"), "", Deck.exit),
    Command(("/clear",), "", Deck.clear),
    Command(("/regen",), "", Deck.regen),
    Command(("/undo",), "", Deck.undo),
    Command(("/edit",), "", Deck.edit),
    Command(("/system",), "[TEXT]", Deck.system),
    Command(("/set",), "[NAME VALUE]", Deck.set),
    Command(("/show",), "", Deck.show),
    Command(("/save",), "FILE", Deck.save),
    Command(("/load",), "FILE", Deck.load),
    Command(("/read",), "FILE", Deck.read),
    Command(("/glob",), "PATTERN", Deck.glob),
    Command(("/copy",), "", Deck.copy),
    Command(("/stats", "/tps"), "[on|off]", Deck.toggle_stats),
    Command(("/spec",), "[auto|on|off]", Deck.set_spec),
    Command(("/explain",), "[on|off]", Deck.toggle_explain),
    Command(("/model",), "[MODEL]", Deck.model),
)
_BY_NAME = {name: command for command in COMMANDS for name in command.names}


def settings() -> list[str]:
    """The names of the settings."""
    return [*_NUMBERS, *_OWN]


def _usage(command: Command) -> str:
    return f"{', '.join(command.names)} {command.takes}".strip()


def _path(rest: str, example: str) -> Path:
    if not rest:
        raise ConfigError(f"no file was given: give one, as in {example}")
    try:
        words = shlex.split(rest, posix=sys.platform != "win32")
    except ValueError:
        words = [rest]
    try:
        return Path(words[0] if len(words) == 1 else rest).expanduser()
    except RuntimeError as error:  # the home of an unknown user
        raise ConfigError(f"{rest!r} is not a path: {error}") from error


def _number(name: str, value: str, *, whole: bool) -> float:
    try:
        return int(value) if whole else float(value)
    except ValueError as error:
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{name} must be {kind}, got {value!r}") from error


def _switch(name: str, value: str) -> bool:
    _one_of(name, value, ("on", "off"))
    return value == "on"


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} must be {' or '.join(known)}, got {value!r}")


def _matches(pattern: str) -> list[Path]:
    """Matching files; raises ConfigError if there are too many."""
    found: list[Path] = []
    for n, name in enumerate(glob.iglob(pattern, recursive=True)):
        if Path(name).is_file():
            found.append(Path(name))
        if len(found) > _MOST_FILES or n > _MOST_PLACES:
            raise ConfigError(
                f"{pattern} matches more than {_MOST_FILES} files, or searches too "
                "many folders: give a narrower pattern"
            )
    return found


def _tell(line: str) -> None:
    """Prints a styled row of a table as it is, or wraps a sentence."""
    painted = isinstance(line, Painted)
    echo(line if painted else wrapped(line, columns(sys.stderr)), err=True)


def _plainly(value: float) -> str:
    """A number as it can be typed."""
    return str(value) if isinstance(value, int) else f"{value:g}"


def _onoff(value: bool) -> str:
    return "on" if value else "off"


def _short(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
