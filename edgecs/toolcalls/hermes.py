"""Hermes, Qwen 2.5 and Qwen 3: JSON between <tool_call> and </tool_call>."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgecs.text.triggers import Triggers
from edgecs.toolcalls.events import Begun, Finished
from edgecs.toolcalls.family import Marked, Markers, Wanted
from edgecs.toolcalls.lark_rules import json_call, rules_for
from edgecs.toolcalls.source import Source, Steps, json_object
from edgecs.toolcalls.tool import Tool

OPENS, CLOSES = "<tool_call>", "</tool_call>"


class Hermes(Marked):
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>, once for each call."""

    name = "Hermes"
    markers: Sequence[str] = (OPENS, CLOSES)
    triggers = Triggers((OPENS,))

    def rules(self, wanted: Wanted, marker: Markers) -> str:
        """See `Family`."""
        made = rules_for(
            wanted.tools, lambda tool, args: json_call(tool, args, "arguments") + '"}"'
        )
        more = " (WS? call)*" if wanted.parallel else ""
        return (
            f"calls: call{more}\n"
            f"call: {marker(OPENS)} WS? one WS? {marker(CLOSES)}\n{made}"
        )

    def call(self, source: Source, tools: Mapping[str, Tool]) -> Steps[None]:
        """See `Marked`."""
        yield from source.literal(OPENS)
        yield from source.space()
        yield from named_object(source, tools, "arguments")
        yield from source.space()
        yield from source.literal(CLOSES)
        yield Finished()
        source.keep()


def named_object(
    source: Source, tools: Mapping[str, Tool], key: str, *more: str
) -> Steps[None]:
    """Take {"name": ..., KEY: ...}; members of `more`, which are texts, may follow."""
    for part in ("{", '"name"', ":", '"'):
        yield from source.literal(part)
        if part != '"':
            yield from source.space()
    name = yield from source.name({*tools}, '"')
    yield Begun(name)
    for part in (",", f'"{key}"', ":"):
        yield from source.space()
        yield from source.literal(part)
    yield from source.space()
    yield from json_object(source)
    yield from source.space()
    for one in more:
        if (yield from source.optional(",")):
            for part in (f'"{one}"', ":"):
                yield from source.space()
                yield from source.literal(part)
            yield from source.space()
            yield from source.literal('"')
            yield from source.until('"')
            yield from source.space()
    yield from source.literal("}")
