"""The last conversations, kept after every turn, so that no end of a chat loses one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import platformdirs

from edgecs.chat.archive import read, save
from edgecs.core.files import sweep
from edgecs.errors import ConfigError
from edgecs_cli.chat.model import Talk
from edgecs_cli.console import say

_KEPT = 8  # conversations


class Autosave:
    """Writes a chat into a file of its own, without cells: it is there to be read.

    wanted: whether anything is kept at all.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._path = _folder() / f"{time.time_ns():020}-{os.getpid()}.edgecs"
        self._wanted = wanted
        self._written: object = None  # the messages of the last file

    @contextmanager
    def at_end(self, talk: Talk, model: str) -> Iterator[None]:
        """Also keeps what an exception ends, with as much as was said by then."""
        try:
            yield
        finally:
            self.write(talk, model)

    def write(self, talk: Talk, model: str) -> None:
        """Keeps a conversation that has changed. A disk that is full is told once."""
        messages = list(talk.chat.messages)
        said = any(message.role == "assistant" for message in messages)
        if not (self._wanted and said) or messages == self._written:
            return
        state, first = talk.chat.conversation.state(), self._written is None
        try:
            save(self._path, state, talk.owner(), None, {"model": _reference(model)})
        except ConfigError as error:
            self._wanted = False
            with suppress(OSError):  # the terminal may be gone
                say(f"this chat cannot be resumed later: {error}")
            return
        self._written = messages  # not before: a signal may have ended the saving
        if first:
            _drop_old()


def last_chat() -> tuple[Path, str]:
    """The newest conversation's file, and the model it is with.

    Raises click.UsageError where there is none, ConfigError where it is damaged.
    """
    files = _files()
    if not files:
        raise click.UsageError("there is no chat to resume: begin one with -m MODEL")
    return files[-1], read(files[-1], None).settings.get("model", "")


def _reference(model: str) -> str:
    """What -m said, from whatever folder it is said again."""
    path = Path(model)
    return str(path.absolute()) if path.is_file() else model


def _folder() -> Path:
    return Path(platformdirs.user_state_dir("edgecs")) / "chats"


def _files() -> list[Path]:
    """All of them, the newest last."""
    with suppress(OSError):
        return sorted(_folder().glob("*.edgecs"))
    return []


def _drop_old() -> None:
    sweep(_folder())  # each chat has a file of its own, which is not written again
    for old in _files()[:-_KEPT]:
        with suppress(OSError):
            old.unlink()
