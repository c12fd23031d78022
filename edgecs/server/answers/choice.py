"""One of the answers to a request, and its news."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from edgecs.server.batching.job import Ended
from edgecs.session.answer import FinishReason, Token
from edgecs.session.stats import Stats
from edgecs.text.thoughts import Separator
from edgecs.toolcalls.events import (
    Arguments,
    Begun,
    Event,
    Finished,
    Text,
    Thought,
    Withdrawn,
)
from edgecs.toolcalls.family import Parser

logger = logging.getLogger("edgecs")
Reason = FinishReason | Literal["tool_calls"]


@dataclass(eq=False)
class Call:
    """A tool call. index: among the calls that have begun. done: it is complete."""

    index: int
    name: str
    arguments: str = ""
    done: bool = False
    id: str = field(default_factory=lambda: secrets.token_hex(12))


class Called(NamedTuple):
    """The news of a call: it has begun, it has more arguments, or its end."""

    call: Call
    event: Begun | Arguments | Finished | Withdrawn


Piece = Text | Thought | Called


@dataclass(eq=False)
class Choice:
    """One of the `n` answers to a request, as far as it is known.

    thoughts: separates thoughts from the answer; None: the text is not separated, or by
    the parser. parser: finds tool calls; None: there are no tools. thought_tokens:
    those of thoughts, with the delimiters next to them. calls: those that are complete.
    incomplete: how many were cut off or malformed, and are part of the text.
    """

    index: int
    thoughts: Separator | None = None
    parser: Parser | None = None
    thought: str = ""
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    ended: Ended | None = None
    thought_tokens: int = 0
    calls: list[Call] = field(default_factory=list)
    incomplete: int = 0
    in_calls: list[bool] = field(default_factory=list)  # of every token
    _begun: int = 0
    _call: Call | None = None

    @property
    def reason(self) -> Reason | None:
        """Why it ended; None: it has not ended."""
        if self.ended is None:
            return None
        stopped = self.ended.reason == "stop"
        return "tool_calls" if stopped and self.calls else self.ended.reason

    def add(self, event: list[Token] | Ended) -> Part:
        """Add an event, and return what is new."""
        if isinstance(event, Ended):
            self.ended, tokens = event, list[Token]()
        else:
            tokens = event
        pieces = list[Piece]()
        for token in tokens:
            pieces += self._separated(token.text)
            inside = self.parser is not None and self.parser.inside
            self.in_calls.append(inside)
        if self.ended:
            pieces += self._rest()
        part = Part(self, _joined(pieces), tokens)
        self.thought += part.thought
        self.text += part.text
        self.tokens += tokens
        return part

    def _separated(self, new: str) -> list[Piece]:
        """The pieces of a token's text."""
        if self.thoughts is None:
            was_open = self._thinking
            pieces = self._parsed(new)
            self.thought_tokens += was_open or self._thinking
            return pieces
        was_open = self.thoughts.open
        parts = self.thoughts.feed(new)
        self.thought_tokens += was_open or self.thoughts.open
        thought: list[Piece] = [Thought(parts.thought)] if parts.thought else []
        return [*thought, *self._parsed(parts.answer)]

    @property
    def _thinking(self) -> bool:
        return self.parser is not None and self.parser.thinking

    def _rest(self) -> list[Piece]:
        """What was held back."""
        pieces = list[Piece]()
        if self.thoughts is not None:
            parts = self.thoughts.flush()
            pieces += [Thought(parts.thought)] if parts.thought else []
            pieces += self._parsed(parts.answer)
        if self.parser is not None:
            pieces += self._with_calls(self.parser.flush())
        return pieces

    def _parsed(self, text: str) -> list[Piece]:
        if self.parser is not None:
            return self._with_calls(self.parser.feed(text))
        return [Text(text)] if text else []

    def _with_calls(self, events: Sequence[Event]) -> list[Piece]:
        pieces = list[Piece]()
        for event in events:
            if isinstance(event, Text | Thought):
                pieces.append(event)
                continue
            if isinstance(event, Begun):
                self._call = Call(self._begun, event.name)
                self._begun += 1
            call = self._call
            if call is not None:
                pieces.append(Called(call, event))
            if isinstance(event, Arguments) and call is not None:
                call.arguments += event.text
            elif isinstance(event, Finished) and call is not None:
                call.done = True
                self.calls.append(call)
                self._call = None
            elif isinstance(event, Withdrawn):
                logger.info("a tool call was cut off or malformed: it is text")
                self.incomplete += 1
                self._call = None
        return pieces


class Part(NamedTuple):
    """The news of an answer: a round, or its end, when `choice.ended` is set.

    pieces: in the order of the text.
    """

    choice: Choice
    pieces: Sequence[Piece]
    tokens: Sequence[Token]

    @property
    def thought(self) -> str:
        """The new thoughts."""
        return "".join(one.text for one in self.pieces if isinstance(one, Thought))

    @property
    def text(self) -> str:
        """The new text."""
        return "".join(one.text for one in self.pieces if isinstance(one, Text))


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces, those of a kind that follow each other as one."""
    made = list[Piece]()
    for one in pieces:
        last = made[-1] if made else None
        if isinstance(one, Text) and isinstance(last, Text):
            made[-1] = Text(last.text + one.text)
        elif isinstance(one, Thought) and isinstance(last, Thought):
            made[-1] = Thought(last.text + one.text)
        elif (
            isinstance(one, Called)
            and isinstance(last, Called)
            and isinstance(one.event, Arguments)
            and isinstance(last.event, Arguments)
        ):
            made[-1] = Called(one.call, Arguments(last.event.text + one.event.text))
        else:
            made.append(one)
    return made


def drafts_in_calls(choice: Choice, stats: Stats) -> dict[str, int]:
    """Counts of the rounds that began within a call; {}: no token was in one."""
    inside = choice.in_calls
    if not any(inside):
        return {}
    rounds = tested = accepted = 0
    at = 1  # the first token is of the call that read the prompt
    for record in stats.records:
        if at < len(inside) and inside[at]:
            rounds += 1
            tested += len(record.tested)
            accepted += len(record.accepted)
        at += len(record.accepted) + 1
    return {
        "tokens": sum(inside),
        "rounds": rounds,
        "tested": tested,
        "accepted": accepted,
    }
