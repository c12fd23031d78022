"""What a parser finds in an answer, in the order of the text."""

from __future__ import annotations

from typing import NamedTuple


class Text(NamedTuple):
    """Text of the answer."""

    text: str


class Thought(NamedTuple):
    """Text of thoughts, in families that have a channel for them."""

    text: str


class Begun(NamedTuple):
    """A call of a tool."""

    name: str


class Arguments(NamedTuple):
    """More of the JSON text of the current call's arguments."""

    text: str


class Finished(NamedTuple):
    """The current call is complete: its arguments are a JSON object."""


class Withdrawn(NamedTuple):
    """The current call is cut off or malformed; its text follows as `Text`."""


Event = Text | Thought | Begun | Arguments | Finished | Withdrawn
