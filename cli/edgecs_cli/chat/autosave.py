"""Saves the last conversations after every turn, for `edgecs chat --resume`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import platformdirs

from edgecs.chat.archive import read, save
from edgecs.core.files import sweep
from edgecs.errors import ConfigError
from edgecs_cli.chat.talk import Talk
from edgecs_cli.console import say

_KEPT = 8  # conversations


class Autosave:
    """Saves a chat to a file of its own, without KV cells.

    wanted: whether anything is saved at all.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._path = _folder() / f"{time.time_ns():020}-{os.getpid()}.edgecs"
        self._wanted = wanted
        self._written: object = None  # the messages of the last file

    @property
    def saved(self) -> bool:
        """Whether the conversation is in a file."""
        return self._wanted and self._written is not None

    @contextmanager
    def at_end(self, talk: Talk[Any], model: str) -> Iterator[None]:
        """Also saves a chat that ends by an exception, up to there."""
        try:
            yield
        finally:
            self.write(talk, model)

    def write(self, talk: Talk[Any], model: str) -> None:
        """Saves a conversation that has changed; reports a failure once."""
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
        self._written = messages  # only now: a signal may interrupt `save`
        if first:
            _drop_old()


def last_chat() -> tuple[Path, str]:
    """The newest conversation's file, and its model.

    Raises click.UsageError if there is none, ConfigError if it is damaged.
    """
    files = _files()
    if not files:
        raise click.UsageError("there is no chat to resume: start one with -m MODEL")
    return files[-1], read(files[-1], None).settings.get("model", "")


def _reference(model: str) -> str:
    """The model reference, with the absolute path of a file."""
    path = Path(model)
    return str(path.absolute()) if path.is_file() else model


def _folder() -> Path:
    return Path(platformdirs.user_state_dir("edgecs")) / "chats"


def _files() -> list[Path]:
    """All saved chats, the newest last."""
    with suppress(OSError):
        return sorted(_folder().glob("*.edgecs"))
    return []


def _drop_old() -> None:
    sweep(_folder())  # `replacing` sweeps only when the same file is written again
    for old in _files()[:-_KEPT]:
        with suppress(OSError):
            old.unlink()
