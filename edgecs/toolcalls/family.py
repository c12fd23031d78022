"""A family of models that write tool calls in the same syntax, and its parser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgecs.text.triggers import Triggers
from edgecs.toolcalls.events import Event, Text, Withdrawn
from edgecs.toolcalls.lark_rules import text as quoted
from edgecs.toolcalls.source import Malformed, Source, Steps, said
from edgecs.toolcalls.tool import Tool

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Markers:
    """The texts of a syntax in one vocabulary. ids: of those that are one token."""

    ids: Mapping[str, int]

    def __call__(self, text: str) -> str:
        """Lark for a text of the syntax: as text, or as its token."""
        token = self.token(text)
        return f"({quoted(text)} | {token})" if token else quoted(text)

    def token(self, text: str) -> str | None:
        """Lark for the token of a text; None: it has none."""
        return f"<[{self.ids[text]}]>" if text in self.ids else None


@dataclass(frozen=True)
class Wanted:
    """What a grammar describes. parallel: several calls; forced: nothing but calls."""

    tools: Sequence[Tool]
    parallel: bool
    forced: bool


class Family(Protocol):
    """The syntax of calls in one family.

    name: in messages. markers: its texts that may be control tokens; where they are,
    an answer shows them.
    """

    name: str
    markers: Sequence[str]

    def begins(self, names: Iterable[str]) -> Triggers:
        """What begins a call of one of the tools."""

    def rules(self, wanted: Wanted, marker: Markers) -> str:
        """The grammar from the first trigger on, in Lark, with the rule `calls`."""

    def compiles(self, tools: Iterable[Tool]) -> bool:
        """Whether `parse` may compile a schema, which takes up to a second."""

    def parse(self, source: Source, tools: Mapping[str, Tool]) -> Steps[None]:
        """Parse a whole answer."""

    def messages(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[Sequence[Message], Sequence[Tool]]:
        """Messages in the form of the family's templates, and tools for them."""


class Marked(ABC):
    """A family whose answers are text except for calls, which begin with a trigger."""

    name: str
    markers: Sequence[str]
    triggers: Triggers

    def begins(self, names: Iterable[str]) -> Triggers:
        """See `Family`."""
        return self.triggers

    def compiles(self, tools: Iterable[Tool]) -> bool:
        """See `Family`."""
        return False

    @abstractmethod
    def call(self, source: Source, tools: Mapping[str, Tool]) -> Steps[None]:
        """Parse the calls that begin here, with a trigger. Raises Malformed."""

    def parse(self, source: Source, tools: Mapping[str, Tool]) -> Steps[None]:
        """See `Family`."""
        triggers, first = self.begins(tools), True
        while (yield from said(source, triggers, first=first)):
            first = False
            yield from attempt(source, self.call(source, tools))

    def messages(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[Sequence[Message], Sequence[Tool]]:
        """See `Family`."""
        return messages, tools


def attempt(source: Source, call: Steps[None]) -> Steps[None]:
    """Parse a call; if it is malformed, return its text."""
    source.inside = True
    try:
        yield from call
    except Malformed:
        if source.closed:
            source.at = len(source.text)
        yield Withdrawn()
        if text := source.give_up():
            yield Text(text)
    source.inside = False


class Parser:
    """Finds the calls in one answer.

    >>> from edgecs.toolcalls.hermes import Hermes
    >>> parser = Parser(Hermes(), [Tool("now", None, {})])
    >>> parser.feed('Wait. <tool_call>{"name": "now", ')
    [Text(text='Wait.'), Begun(name='now')]
    >>> parser.feed('"arguments": {}}</tool_call>')
    [Arguments(text='{}'), Finished()]
    """

    def __init__(self, family: Family, tools: Sequence[Tool]) -> None:
        self._source = Source()
        self._steps = family.parse(self._source, {tool.name: tool for tool in tools})
        self._over = False
        self.compiles = family.compiles(tools)  # see `Family`

    @property
    def inside(self) -> bool:
        """Whether the text so far ends within a call."""
        return bool(self._source.inside)

    @property
    def thinking(self) -> bool:
        """Whether the text so far ends within thoughts."""
        return bool(self._source.thinking)

    def feed(self, text: str) -> list[Event]:
        """What is certain after more text."""
        if not text:
            return []
        self._source.add(text)
        return self._events()

    def flush(self) -> list[Event]:
        """The rest, at the end of the answer; may be called again."""
        self._source.closed = True
        return self._events()

    def _events(self) -> list[Event]:
        events = list[Event]()
        while not self._over:
            try:
                event = next(self._steps)
            except StopIteration:
                self._over = True
                break
            if event is None:
                break
            events.append(event)
        return events
