"""Commands that read and write files, and the clipboard."""

from __future__ import annotations

import glob
import re
import shlex
import sys
from pathlib import Path

from edgecs.errors import ConfigError
from edgecs_cli.chat.deck import Deck
from edgecs_cli.chat.words import short
from edgecs_cli.console import say, to_clipboard
from edgecs_cli.options.texts import read_text

_LARGEST = 4 << 20  # bytes of the files attached to a message
_MOST_FILES, _MOST_PLACES = 100, 10_000  # that match a pattern, and that are visited
_CODE = re.compile(r"^```[^\n]*\n(.*?)^```", re.M | re.S)


def save(deck: Deck, rest: str) -> None:
    """Saves the conversation to a file, with its KV cells."""
    path = _path(rest, "/save talk.edgecs")
    deck.talk.save(path)
    size = path.stat().st_size / (1 << 20)
    count = len(deck.talk.chat.messages)
    say(f"{count} messages were saved to {path} ({size:.1f} MiB)")


def load(deck: Deck, rest: str) -> None:
    """Loads the conversation in a file."""
    path = _path(rest, "/load talk.edgecs")
    reason = deck.talk.load(path)
    messages = deck.talk.chat.messages
    note = f"; recomputed because {reason}" if reason else ""
    say(f"{len(messages)} messages from {path}{note}")
    for message in messages[-2:]:
        say(f"{message.role}: {short(message.content, 200)}")


def attach(deck: Deck, rest: str) -> None:
    """Attaches a text file to the next message."""
    path = _path(rest, "/read notes.txt")
    _attach(deck, path, read_text(path, _LARGEST))


def attach_all(deck: Deck, rest: str) -> None:
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
        _attach(deck, path, text)


def copy(deck: Deck, rest: str) -> None:
    """Copies the last block of code, or the whole last answer."""
    said = [m.content for m in deck.talk.chat.messages if m.role == "assistant"]
    if not said:
        raise ConfigError("there is no answer to copy yet")
    blocks = _CODE.findall(said[-1])
    text = blocks[-1] if blocks else said[-1]
    to_clipboard(text)
    what = "the last code block" if blocks else "the last answer"
    say(f"{what} ({len(text)} characters) was copied to the clipboard")


def _attach(deck: Deck, path: Path, text: str) -> None:
    deck.attached.append(f"{path.name}:\n```\n{text.rstrip()}\n```")
    say(f"{path} ({len(text)} characters) is attached to your next message")


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
