"""A conversation as ids: what a model said is never tokenised again.

A text that is tokenised twice may become other tokens than those that were generated,
and then neither the KV cells nor the answer are what they would have been. So answers
stay the ids that they were, and of the template's text only what is new becomes tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from edgecs.core.context import Tokens
from edgecs.text.chat_template import ChatTemplate
from edgecs.text.detokenizer import Tokenizer

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One message.

    ids: of an answer, as they were generated, an end token at most at their end.
    shortened: what is fed in place of `content`, where that was too long. left_out:
    kept, but not fed any more.
    """

    role: str
    content: str
    ids: tuple[int, ...] | None = None
    shortened: str | None = None
    left_out: bool = False


class Prompt(NamedTuple):
    """What to feed. again: tokens of answers that had to be tokenised once more."""

    tokens: Tokens
    again: int


class Conversation:
    """Messages in, ids out. Where the template allows, each turn extends the last.

    A template may rewrite what was said, as those do that strip reasoning from earlier
    answers. Then the ids of those answers hold no more, and what follows the common
    beginning is tokenised from its text; `Prompt.again` says how much.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self._template, self._tokenizer = template, tokenizer
        self.messages: list[Message] = []

    def add(self, role: str, content: str) -> None:
        """Appends a message that was not generated."""
        self.messages.append(Message(role, content))

    def add_answer(self, content: str, ids: Sequence[int]) -> None:
        """Appends an answer: what a reader saw of it, and all tokens of it."""
        self.messages.append(Message("assistant", content, tuple(ids)))

    def set_system(self, content: str | None) -> None:
        """The system message, which comes first; None: there is none."""
        if self.messages and self.messages[0].role == "system":
            del self.messages[0]
        if content:
            self.messages.insert(0, Message("system", content))

    def pop_turn(self) -> list[Message]:
        """Takes the last user message and what follows it away; empty: there is none.

        >>> talk = Conversation(template=None, tokenizer=None)
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
        """These messages are not fed from now on."""
        for i in places:
            self.messages[i] = replace(self.messages[i], left_out=True)

    def prompt(self, partial: Sequence[int] = ()) -> Prompt:
        """The ids to feed, ending where the assistant is to speak.

        partial: tokens of an answer under way, which come behind that.
        """
        fed = [message for message in self.messages if not message.left_out]
        whole = self._render(fed)
        parts: list[Tokens] = []
        done, again = 0, 0  # characters of the text that are tokens already
        holds = True
        for at, ids in _answers(fed):
            head = self._render(fed[:at]) if holds else ""
            end = len(head) + len(self._spoken(fed[at]))
            holds = holds and len(head) >= done
            holds = holds and whole.startswith(head + self._spoken(fed[at]))
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
        return Prompt(np.concatenate(parts), again)

    def _render(self, messages: Sequence[Message]) -> str:
        return self._template.render(
            [{"role": m.role, "content": self._spoken(m)} for m in messages]
        )

    def _spoken(self, message: Message) -> str:
        """What a message says to the model; an answer may say more than was seen."""
        if message.ids is None:
            return message.content if message.shortened is None else message.shortened
        pieces = map(self._tokenizer.piece, self._without_end(message.ids))
        return codecs.decode(b"".join(pieces), "utf-8", "replace")

    def _without_end(self, ids: Sequence[int]) -> Sequence[int]:
        return ids[:-1] if ids and ids[-1] in self._tokenizer.ends else ids

    def _closing(self, ids: Sequence[int]) -> str:
        """How a template spells the end token of an answer; "" if there is none."""
        if not ids or ids[-1] not in self._tokenizer.ends:
            return ""
        return self._tokenizer.spelling(ids[-1])

    def _encode(self, text: str, *, first: bool) -> Tokens:
        if not text and not first:
            return np.empty(0, dtype=np.int32)
        if first:
            return self._template.encode_text(text)
        return self._tokenizer.encode(text, document=False)

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


def restored(
    state: Sequence[dict[str, Any]], vocab_size: int | None = None
) -> list[Message]:
    """Messages from `Conversation.state`. Raises TypeError, KeyError, ValueError.

    vocab_size: of the model that is to go on; None: ids are not looked at.
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
    """Places of answers whose ids are known, and these."""
    for i, message in enumerate(messages):
        if message.ids is not None:
            yield i, message.ids
