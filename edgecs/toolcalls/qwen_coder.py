"""Qwen3-Coder: XML in which every parameter has a tag, and texts are not quoted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgecs.text.triggers import Triggers
from edgecs.toolcalls.events import Arguments, Begun, Finished
from edgecs.toolcalls.family import Marked, Markers, Message, Wanted
from edgecs.toolcalls.hermes import CLOSES, OPENS
from edgecs.toolcalls.lark_rules import COMMON, any_of, json_rule, text
from edgecs.toolcalls.source import Malformed, Source, Steps
from edgecs.toolcalls.tool import Schema, Tool, resolved

_ENDS = "</parameter>"
_NOT_TEXT = {"number", "integer", "boolean", "array", "object", "null"}


class QwenCoder(Marked):
    """<tool_call><function=NAME><parameter=KEY>VALUE</parameter>...</function>..."""

    name = "Qwen3-Coder"
    markers: Sequence[str] = (OPENS, CLOSES)
    triggers = Triggers((OPENS,))

    def rules(self, wanted: Wanted, marker: Markers) -> str:
        """See `Family`."""
        more = " (WS? call)*" if wanted.parallel else ""
        tools = range(len(wanted.tools))
        lines = [
            f"calls: call{more}",
            f'call: {marker(OPENS)} WS? one "</function>" WS? {marker(CLOSES)}',
            f"one: {any_of(f'tool_{i}' for i in tools)}",
            rf'raw[suffix="\n{_ENDS}"]: /(.|\n)*/',
        ]
        for i, tool in enumerate(wanted.tools):
            lines += _tool_rules(tool, f"tool_{i}")
        return "\n".join([*lines, COMMON])

    def messages(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[Sequence[Message], Sequence[Tool]]:
        """See `Family`. The templates would write Python's True and None."""
        return [_with_texts(message) for message in messages], tools

    def call(self, source: Source, tools: Mapping[str, Tool]) -> Steps[None]:
        """See `Family`."""
        for part in (OPENS, "<function="):
            yield from source.literal(part)
            yield from source.space()
        name = yield from source.name({*tools}, ">")
        yield Begun(name)
        yield Arguments("{")
        seen = set[str]()
        while True:
            yield from source.space()
            part = yield from source.one_of("<parameter=", "</function>")
            if part == "</function>":
                break
            key = yield from source.until(">")
            if key in seen or len(key) > 1024:
                raise Malformed
            comma = ", " if seen else ""
            seen.add(key)
            yield Arguments(f"{comma}{json.dumps(key, ensure_ascii=False)}: ")
            yield from _value(source, _property(tools[name], key))
        yield Arguments("}")
        yield from source.space()
        yield from source.literal(CLOSES)
        yield Finished()
        source.keep()


def _with_texts(message: Message) -> Message:
    """A message whose calls have JSON texts for truth values and null."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        given = call["function"]["arguments"]
        if isinstance(given, Mapping):
            given = {
                key: json.dumps(one) if one is None or isinstance(one, bool) else one
                for key, one in given.items()
            }
        calls.append({**call, "function": {**call["function"], "arguments": given}})
    return {**message, "tool_calls": calls}


def _value(source: Source, schema: Schema) -> Steps[None]:
    """Take the value of a parameter, and yield it as JSON."""
    yield from source.optional("\n")
    if not _may_be_json(schema):
        yield Arguments('"')
        yield from _text(source)
        yield Arguments('"')
        return
    value = (yield from source.until(_ENDS)).removesuffix("\n")
    try:
        json.loads(value, parse_constant=_not_json)
    except (ValueError, RecursionError):
        if not _may_be_text(schema):
            raise Malformed from None
        value = json.dumps(value, ensure_ascii=False)
    yield Arguments(value.strip())


def _text(source: Source) -> Steps[None]:
    """Take a text up to its end, and yield it as the inside of a JSON string."""
    while True:
        rest = source.rest
        at = rest.find(_ENDS)
        if at >= 0:
            shown = rest[:at].removesuffix("\n")
            source.at += at + len(_ENDS)
        else:
            shown = rest[: len(rest) - _held(rest)].removesuffix("\n")
            source.at += len(shown)
        if shown:
            yield Arguments(json.dumps(shown, ensure_ascii=False)[1:-1])
        if at >= 0:
            return
        yield from source.more()


def _held(rest: str) -> int:
    """Length of the longest end of a text that may begin the end tag."""
    sizes = range(min(len(_ENDS) - 1, len(rest)), 0, -1)
    return next((n for n in sizes if _ENDS.startswith(rest[-n:])), 0)


def _property(tool: Tool, key: str) -> Schema:
    properties = tool.parameters.get("properties")
    found = properties.get(key) if isinstance(properties, Mapping) else None
    return resolved(found, tool.parameters)


def _values(schema: Schema) -> Sequence[Any]:
    """The values that a schema lists, if it does."""
    if "const" in schema:
        return [schema["const"]]
    values: Sequence[Any] = schema.get("enum", ())
    return values


def _types(schema: Schema) -> set[str]:
    """The types that a schema names; none: it may be anything."""
    given = schema.get("type")
    if given is None:  # "object" stands for all that are no texts
        return {"string" if isinstance(v, str) else "object" for v in _values(schema)}
    return {given} if isinstance(given, str) else {*given}


def _may_be_json(schema: Schema) -> bool:
    types = _types(schema)
    return not types or bool(types & _NOT_TEXT)


def _may_be_text(schema: Schema) -> bool:
    types = _types(schema)
    return not types or "string" in types


def _tool_rules(tool: Tool, rule: str) -> list[str]:
    """The rules of one tool: its parameters in their order."""
    properties = tool.parameters.get("properties") or {}
    required = {*tool.parameters.get("required", ())}
    shared = {
        name: tool.parameters[name]
        for name in ("$defs", "definitions")
        if name in tool.parameters
    }
    parts, lines = list[str](), list[str]()
    for i, (key, schema) in enumerate(properties.items()):
        name = f"{rule}_{i}"
        parts.append(name if key in required else f"{name}?")
        begin = text(f"<parameter={key}>\n")
        kinds = resolved(schema, tool.parameters)
        lines.append(f"{name}: {begin} {_value_rule(kinds, name)} WS?")
        if not _may_be_text(kinds):
            lines.append(f"{name}_json: {json_rule({**kinds, **shared})}")
    begin = text(f"<function={tool.name}>\n")
    return [" ".join([f"{rule}:", begin, *parts]), *lines]


def _value_rule(schema: Schema, name: str) -> str:
    ends = text(f"\n{_ENDS}")
    if not _may_be_text(schema):
        return f"{name}_json {ends}"
    texts = _values(schema)
    if texts and all(isinstance(one, str) for one in texts):
        return f"{any_of(map(text, texts))} {ends}"
    return "raw"


def _not_json(said: str) -> None:
    raise ValueError(said)
