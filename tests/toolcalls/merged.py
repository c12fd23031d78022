"""Events of a parser, independent of how its text was cut."""

from __future__ import annotations

from collections.abc import Iterable

from edgecs.toolcalls.events import Arguments, Event, Text, Thought


def joined(events: Iterable[Event]) -> list[Event]:
    """The events, those of a kind that follow each other as one."""
    made = list[Event]()
    for event in events:
        last = made[-1] if made else None
        if isinstance(event, Text | Thought | Arguments) and isinstance(
            last, type(event)
        ):
            made[-1] = type(event)(last.text + event.text)
        else:
            made.append(event)
    return made
