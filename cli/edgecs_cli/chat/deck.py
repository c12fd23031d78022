"""The state of a chat on the screen."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from edgecs_cli.chat.talk import Talk


class Leave(Exception):
    """Ends the chat, or continues it with another model."""

    def __init__(self, model: str | None = None) -> None:
        super().__init__()
        self.model = model


class Deck:
    """A conversation, and how it is shown.

    answer: shows an answer of `Talk`. lent: a context in which an editor has the
    terminal. talk: replaced when the model changes. attached: texts that precede the
    next message.
    """

    def __init__(
        self,
        talk: Talk[Any],
        answer: Callable[..., None],
        lent: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.talk, self.answer, self.lent = talk, answer, lent
        self.attached: list[str] = []
        self.explain = False
        self.stats = True
        self.markdown = True
        self.folds = True
