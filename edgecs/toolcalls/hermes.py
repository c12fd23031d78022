"""Hermes, Qwen 2.5 and Qwen 3: JSON between <tool_call> and </tool_call>."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from edgecs.text.triggers import Triggers
from edgecs.toolcalls.events import Begun, Finished
from edgecs.toolcalls.family import Marked, Markers, Wanted
from edgecs.toolcalls.lark_rules import json_call, rules_for, text
from edgecs.toolcalls.source import Source, Steps, json_object
from edgecs.toolcalls.tool import Tool

OPENS, CLOSES = "<tool_call>", "</tool_call>"
_FENCE, _FENCE_ENDS = "```json", "```"


class Hermes(Marked):
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>, once for each call.

    Small models forget the tags, as Qwen2.5-Coder does. So an answer that begins with
    the JSON of a call, with the name of one of the tools, is that call, and also if a
    fence is around it.
    """

    name = "Hermes"
    markers: Sequence[str] = (OPENS, CLOSES)
    triggers = Triggers((OPENS,))

    def begins(self, names: Iterable[str]) -> Triggers:
        """See `Family`."""
        bare = [("{", '"name"', ":", f'"{name}"') for name in names]
        fenced = [(_FENCE, *parts) for parts in bare]
        return Triggers((OPENS,), (*bare, *fenced))

    def rules(self, wanted: Wanted, marker: Markers) -> str:
        """See `Family`."""
        made = rules_for(
            wanted.tools, lambda tool, args: json_call(tool, args, "arguments") + '"}"'
        )
        more = " (WS? call)*" if wanted.parallel else ""
        fenced = f"{text(_FENCE)} WS? one WS? {text(_FENCE_ENDS)}"
        without = "" if wanted.forced else f" | one | {fenced}"
        return (
            f"calls: call{more}{without}\n"
            f"call: {marker(OPENS)} WS? one WS? {marker(CLOSES)}\n{made}"
        )

    def call(self, source: Source, tools: Mapping[str, Tool]) -> Steps[None]:
        """See `Marked`."""
        yield from source.space()
        letter, ends = (yield from source.next()), CLOSES
        if letter == _FENCE[0]:
            yield from source.literal(_FENCE)
            ends = _FENCE_ENDS
        elif letter == "{":
            ends = ""
        else:
            yield from source.literal(OPENS)
        yield from source.space()
        yield from named_object(source, tools, "arguments")
        if ends:
            yield from source.space()
            yield from source.literal(ends)
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
