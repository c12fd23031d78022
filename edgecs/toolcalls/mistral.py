"""Mistral: a list of calls after [TOOL_CALLS], or newer, the marker before each one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from edgecs.text.triggers import Triggers
from edgecs.toolcalls.events import Begun, Finished
from edgecs.toolcalls.family import Marked, Markers, Message, Wanted
from edgecs.toolcalls.hermes import named_object
from edgecs.toolcalls.lark_rules import json_call, rules_for, text
from edgecs.toolcalls.source import Source, Steps, json_object
from edgecs.toolcalls.tool import Tool

OPENS, ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_ID = 9  # characters of an id, all letters and digits, which the templates check


class _Mistral(Marked):
    triggers = Triggers((OPENS,))

    def messages(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[Sequence[Message], Sequence[Tool]]:
        """See `Family`. Ids of calls become what the templates want."""
        return [_with_short_ids(message) for message in messages], tools


class MistralList(_Mistral):
    """[TOOL_CALLS] [{"name": ..., "arguments": {...}, "id": ...}, ...]."""

    name = "Mistral"
    markers: Sequence[str] = (OPENS,)

    def rules(self, wanted: Wanted, marker: Markers) -> str:
        """See `Family`."""
        more = ' (WS? "," WS? one)*' if wanted.parallel else ""
        ending = r'("," WS? "\"id\"" WS? ":" WS? ID WS?)? "}"'
        made = rules_for(
            wanted.tools,
            lambda tool, args: f"{json_call(tool, args, 'arguments')} {ending}",
        )
        return (
            f'calls: {marker(OPENS)} WS? "[" WS? one{more} WS? "]"\n'
            f'ID: /"[a-zA-Z0-9]{{{_ID}}}"/\n{made}'
        )

    def call(self, source: Source, tools: Mapping[str, Tool]) -> Steps[None]:
        """See `Family`."""
        yield from source.literal(OPENS)
        yield from source.space()
        yield from source.literal("[")
        while True:
            yield from source.space()
            yield from named_object(source, tools, "arguments", "id")
            yield Finished()
            source.keep()
            yield from source.space()
            if (yield from source.one_of(",", "]")) == "]":
                source.keep()
                return


class MistralArgs(_Mistral):
    """[TOOL_CALLS]name[ARGS]{...}, once for each call."""

    name = "Mistral (with [ARGS])"
    markers: Sequence[str] = (OPENS, ID, ARGUMENTS)

    def rules(self, wanted: Wanted, marker: Markers) -> str:
        """See `Family`."""
        more = " (WS? call)*" if wanted.parallel else ""
        names = f"({marker(ID)} ID)? {marker(ARGUMENTS)}"
        made = rules_for(
            wanted.tools, lambda tool, args: f"{text(tool.name)} {names} WS? {args}"
        )
        return (
            f"calls: call{more}\ncall: {marker(OPENS)} one\n"
            f"ID: /[a-zA-Z0-9]{{{_ID}}}/\n{made}"
        )

    def call(self, source: Source, tools: Mapping[str, Tool]) -> Steps[None]:
        """See `Family`."""
        yield from source.literal(OPENS)
        yield from source.space()
        name = yield from source.name({*tools}, "[")
        yield Begun(name)
        if (yield from source.one_of(ID[1:], ARGUMENTS[1:])) == ID[1:]:
            yield from source.until(ARGUMENTS)
        yield from source.space()
        yield from json_object(source)
        yield Finished()
        source.keep()


def _with_short_ids(message: Message) -> dict[str, Any]:
    made = dict(message)
    if made.get("tool_call_id"):
        made["tool_call_id"] = _short(made["tool_call_id"])
    if "tool_calls" in made:
        made["tool_calls"] = [
            {**call, "id": _short(call["id"])} for call in made["tool_calls"]
        ]
    return made


def _short(name: str) -> str:
    if len(name) == _ID and name.isalnum() and name.isascii():
        return name
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:_ID]
