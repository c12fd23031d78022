"""The text of an answer while it arrives, for parsers that are generators.

A parser yields events, and None when it needs more text. Every step takes the same text
however the answer is cut into parts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator
from typing import Any, TypeVar

from edgecs.text.triggers import Triggers
from edgecs.toolcalls.events import Arguments, Event, Text

T = TypeVar("T")
Steps = Generator[Event | None, None, T]

SPACE = " \t\r\n"
_MOST_SPACE = 64  # characters between two parts of a call


class Malformed(Exception):
    """What follows is no call, or the answer ends within it."""


class Source:
    """Text with a place up to which it has been taken.

    mark: where the text begins that is returned if the current call is malformed.
    """

    def __init__(self) -> None:
        self.text, self.at, self.mark = "", 0, 0
        self.closed = self.inside = False  # the answer has ended; within a call
        self.thinking = False  # within thoughts

    def add(self, text: str) -> None:
        """Append what has arrived; forget what is no longer needed."""
        self.text = self.text[self.mark :] + text
        self.at, self.mark = self.at - self.mark, 0

    @property
    def rest(self) -> str:
        """The text that has arrived and was not taken."""
        return self.text[self.at :]

    def more(self) -> Steps[None]:
        """Wait for more text. Raises Malformed at its end."""
        if self.closed:
            raise Malformed
        yield None

    def keep(self) -> None:
        """Set the mark here: all before it has been returned."""
        self.mark = self.at

    def give_up(self) -> str:
        """The text since the mark, which moves here."""
        text, self.mark = self.text[self.mark : self.at], self.at
        return text

    def next(self) -> Steps[str]:
        """The next character, which is not taken. Raises Malformed."""
        while self.at == len(self.text):
            yield from self.more()
        return self.text[self.at]

    def literal(self, text: str) -> Steps[None]:
        """Take this text. Raises Malformed."""
        while not self.text.startswith(text, self.at):
            if not text.startswith(self.rest):
                raise Malformed
            yield from self.more()
        self.at += len(text)

    def one_of(self, *texts: str) -> Steps[str]:
        """Take one of some texts, of which none begins another. Raises Malformed."""
        while True:
            for text in texts:
                if self.text.startswith(text, self.at):
                    self.at += len(text)
                    return text
            if not any(text.startswith(self.rest) for text in texts):
                raise Malformed
            yield from self.more()

    def optional(self, text: str) -> Steps[bool]:
        """Take this text if it is next."""
        while not self.text.startswith(text, self.at):
            if self.closed or not text.startswith(self.rest):
                return False
            yield None
        self.at += len(text)
        return True

    def space(self) -> Steps[None]:
        """Take white space. Raises Malformed if there is too much."""
        begin = self.at
        while True:
            while self.at < len(self.text) and self.text[self.at] in SPACE:
                self.at += 1
                if self.at - begin > _MOST_SPACE:
                    raise Malformed
            if self.at < len(self.text) or self.closed:
                return
            yield None

    def until(self, mark: str) -> Steps[str]:
        """Take the text before a mark, and the mark. Raises Malformed."""
        searched = 0
        while (found := self.text.find(mark, self.at + searched)) < 0:
            searched = max(0, len(self.rest) - len(mark) + 1)
            yield from self.more()
        text, self.at = self.text[self.at : found], found + len(mark)
        return text

    def name(self, names: set[str], end: str) -> Steps[str]:
        """Take one of some names, and the text that follows it. Raises Malformed."""
        most = max(map(len, names), default=0) + len(end)
        while (found := self.text.find(end, self.at, self.at + most)) < 0:
            if len(self.rest) >= most:
                raise Malformed
            yield from self.more()
        name = self.text[self.at : found]
        if name not in names:
            raise Malformed
        self.at = found + len(end)
        return name


def said(source: Source, triggers: Triggers, *, first: bool) -> Steps[bool]:
    """Text up to a trigger; returns whether there is one.

    White space before a trigger is not returned, and belongs to the call. first: it is
    the start of the answer.
    """
    source.keep()
    while True:
        text = source.rest
        at = triggers.find(text, first=first)
        end = len(text) if at is None else at
        if at is None and not source.closed:
            end -= triggers.held(text, first=first)
        shown = text[:end]
        if at is not None or not source.closed:
            shown = shown.rstrip(SPACE)
        if shown:
            yield Text(shown)
            first = False
        source.at += len(shown)
        source.keep()
        if at is not None:
            source.at += end - len(shown)
            return True
        if source.closed:
            return False
        yield None


def json_object(source: Source) -> Steps[dict[str, Any]]:
    """Take a JSON object and yield its text as arguments. Raises Malformed."""
    if (yield from source.next()) != "{":
        raise Malformed
    parts, depth, quoted, escaped = list[str](), 0, False, False
    while True:
        begin, done = source.at, False
        for at in range(begin, len(source.text)):
            letter = source.text[at]
            if quoted:
                if escaped:
                    escaped = False
                elif letter == "\\":
                    escaped = True
                elif letter == '"':
                    quoted = False
            elif letter == '"':
                quoted = True
            elif letter in "{[":
                depth += 1
            elif letter in "}]":
                depth -= 1
                done = not depth
                if done:
                    break
        end = at + 1 if done else len(source.text)
        if end > begin:
            part, source.at = source.text[begin:end], end
            parts.append(part)
            yield Arguments(part)
        if done:
            return loaded("".join(parts))
        yield from source.more()


def loaded(text: str) -> dict[str, Any]:
    """The JSON object of a text. Raises Malformed."""
    try:
        value = strict_json(text)
    except (ValueError, RecursionError):
        raise Malformed from None
    if not isinstance(value, dict):
        raise Malformed
    return value


def strict_json(text: str) -> Any:
    """The value of a JSON text, all of whose numbers are finite.

    Raises ValueError, RecursionError. Python also takes NaN and Infinity, and reads
    1e999 as infinite, which cannot be sent on.
    """
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.40} is not a finite number")
    return number
