"""A conversation as ids: generated answers are never tokenised again.

Tokenising an answer's text may give other tokens than those that were generated, which
changes KV cells and later answers. So answers are kept as ids, and only the new part of
the template's text is tokenised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from edgecs.core.context import Tokens
from edgecs.text.chat_template import ChatTemplate
from edgecs.text.detokenizer import Tokenizer
from edgecs.text.think_tags import without_thoughts
from edgecs.text.thoughts import THINK
from edgecs.toolcalls.form import AnswerForm

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One message.

    content: the thoughts of an answer are between <think> tags. ids: of an answer, as
    generated, with an end token only at the end. shortened: used in the prompt instead
    of a `content` that is too long. left_out: not in the prompt.
    """

    role: str
    content: str
    ids: tuple[int, ...] | None = None
    shortened: str | None = None
    left_out: bool = False

    @property
    def fed(self) -> str:
        """Its text in the prompt, where no ids are."""
        return self.content if self.shortened is None else self.shortened


class Prompt(NamedTuple):
    """A prompt.

    again: tokens of answers that had to be tokenised again. thinks: its end has opened
    thoughts, so the answer begins with them.
    """

    tokens: Tokens
    again: int
    thinks: bool = False


class Turns(ABC):
    """Messages in their order; a subclass knows the prompt that they make.

    form: how the model writes its answers. shown: the control tokens that mark its
    thoughts, as part of the text of an answer.
    """

    def __init__(self, form: AnswerForm, shown: Mapping[int, bytes]) -> None:
        self.messages: list[Message] = []
        self.form, self.shown = form, shown

    @abstractmethod
    def prompt(self, partial: Sequence[int] = ()) -> Prompt:
        """The ids of the prompt, ending where the answer begins.

        partial: tokens of an unfinished answer, appended to it.
        """

    def add(self, role: str, content: str) -> None:
        """Appends a message that was not generated."""
        self.messages.append(Message(role, content))

    def add_answer(self, content: str, ids: Sequence[int]) -> None:
        """Appends an answer: its visible text, and all its tokens."""
        self.messages.append(Message("assistant", content, tuple(ids)))

    def set_system(self, content: str | None) -> None:
        """Sets the system message, which comes first; None removes it."""
        if self.messages and self.messages[0].role == "system":
            del self.messages[0]
        if content:
            self.messages.insert(0, Message("system", content))

    def pop_turn(self) -> list[Message]:
        """Removes and returns the last user message and what follows it.

        >>> from edgecs.testing.fakes import ByteTokenizer
        >>> talk = Conversation(template=None, tokenizer=ByteTokenizer())
        >>> talk.add("user", "a"); talk.add_answer("b", [1]); talk.add("user", "c")
        >>> [message.content for message in talk.pop_turn()]
        ['c']
        >>> [message.content for message in talk.pop_turn()]
        ['a', 'b']
        """
        places = [i for i, m in enumerate(self.messages) if m.role == "user"]
        if not places:
            return []
        gone = self.messages[places[-1] :]
        del self.messages[places[-1] :]
        return gone

    def leave_out(self, places: Sequence[int]) -> None:
        """Leaves these messages out of the prompt from now on."""
        for i in places:
            self.messages[i] = replace(self.messages[i], left_out=True)

    def state(self) -> list[dict[str, Any]]:
        """The messages as plain values, see `restored`."""
        return [
            {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in vars(message).items()
                if value not in (None, False)
            }
            for message in self.messages
        ]


class Conversation(Turns):
    """Converts messages to ids. Where the template allows, each turn extends the last.

    A template may rewrite earlier answers, for example to strip their reasoning. Then
    the ids of those answers are not valid, and the text after the common prefix is
    tokenised again; `Prompt.again` counts its tokens.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        form = AnswerForm.of(tokenizer.chat_template or "")
        super().__init__(form, form.shown(tokenizer))
        self._template, self._tokenizer = template, tokenizer

    def prompt(self, partial: Sequence[int] = ()) -> Prompt:
        """The ids of the prompt, see `Turns.prompt`."""
        fed = [message for message in self.messages if not message.left_out]
        whole = self._render(fed)
        parts: list[Tokens] = []
        done, again = 0, 0  # characters of the text that are already tokenised
        holds = True
        for at, ids in _answers(fed):
            head = self._render(fed[:at]) if holds else ""
            written = self._written(ids)
            end = len(head) + len(written)
            holds = holds and len(head) >= done
            holds = holds and whole.startswith(head + written)
            if not holds:
                again += len(ids)
                continue
            parts.append(self._encode(head[done:], first=not done))
            parts.append(np.array(self._without_end(ids), dtype=np.int32))
            done = end
            closing = self._closing(ids)
            if closing and whole.startswith(closing, done):
                parts.append(np.array(ids[-1:], dtype=np.int32))
                done += len(closing)
        parts.append(self._encode(whole[done:], first=not done))
        parts.append(np.array(partial, dtype=np.int32))
        return Prompt(np.concatenate(parts), again, self.form.opened(whole))

    def _render(self, messages: Sequence[Message]) -> str:
        return self._template.render(
            [{"role": m.role, "content": self._prompt_text(m)} for m in messages]
        )

    def _prompt_text(self, message: Message) -> str:
        """A message's text for the template, protected; an answer's may be longer.

        Templates know thoughts in the text of an answer as <think> tags, or not at all.
        """
        strips = message.role == "assistant" and self.form.tags is not THINK
        if message.ids is None:
            text = without_thoughts(message.fed) if strips else message.fed
        else:
            said = self._said(message.ids)
            text = "".join(part for part, _ in said)
            text = self.form.answer(text) if strips else text
        return self._template.guard.protect(text)

    def _written(self, ids: Sequence[int]) -> str:
        """An answer's text as a template would have to write it, protected."""
        protect = self._template.guard.protect
        said = self._said(ids)
        return "".join(part if marks else protect(part) for part, marks in said)

    def _said(self, ids: Sequence[int]) -> Iterator[tuple[str, bool]]:
        """The texts of an answer, and whether each is one of tokens that mark thoughts.

        What marks thoughts is the model's, and only that needs no protection.
        """
        shown, piece = self.shown, self._tokenizer.piece
        for marks, run in groupby(self._without_end(ids), shown.__contains__):
            data = b"".join(map(shown.__getitem__ if marks else piece, run))
            yield data.decode("utf-8", "replace"), marks

    def _without_end(self, ids: Sequence[int]) -> Sequence[int]:
        return ids[:-1] if ids and ids[-1] in self._tokenizer.ends else ids

    def _closing(self, ids: Sequence[int]) -> str:
        """The template's text of an answer's end token; "" if there is none."""
        if not ids or ids[-1] not in self._tokenizer.ends:
            return ""
        return self._tokenizer.spelling(ids[-1])

    def _encode(self, text: str, *, first: bool) -> Tokens:
        if not text and not first:
            return np.empty(0, dtype=np.int32)
        return self._template.encode_text(text, first=first)


def restored(
    state: Sequence[dict[str, Any]], vocab_size: int | None = None
) -> list[Message]:
    """Messages from `Conversation.state`. Raises TypeError, KeyError, ValueError.

    vocab_size: of the model that continues; None: ids are dropped.
    """
    found = []
    for fields in state:
        role, content = fields["role"], fields["content"]
        if role not in ROLES or not isinstance(content, str):
            raise TypeError(f"role must be one of {', '.join(ROLES)}, content a text")
        ids, shortened = fields.get("ids"), fields.get("shortened")
        if not (shortened is None or isinstance(shortened, str)):
            raise TypeError("shortened must be a text")
        if ids is not None:
            ids = checked_ids(ids, vocab_size) if vocab_size else None
        found.append(
            Message(role, content, ids, shortened, bool(fields.get("left_out")))
        )
    return found


def checked_ids(ids: Any, size: int) -> tuple[int, ...]:
    """Ids below `size` from plain values. Raises TypeError, ValueError."""
    for token in ids:
        if type(token) is not int:
            raise TypeError(f"an id must be a whole number, got {token!r:.40}")
        if not 0 <= token < size:
            raise ValueError(f"ids go from 0 to {size - 1}, got {token!r:.40}")
    return tuple(ids)


def _answers(messages: Sequence[Message]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Places of answers whose ids are known, and the ids."""
    for i, message in enumerate(messages):
        if message.ids is not None:
            yield i, message.ids
