"""Qwen3-Coder: XML in which every parameter has a tag, and texts are not quoted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from edgecs.text.triggers import Triggers
from edgecs.toolcalls.events import Arguments, Begun, Finished
from edgecs.toolcalls.family import Marked, Markers, Message, Wanted
from edgecs.toolcalls.hermes import CLOSES, OPENS
from edgecs.toolcalls.lark_rules import COMMON, any_of, json_rule, text
from edgecs.toolcalls.qwen_values import Parameters
from edgecs.toolcalls.source import Malformed, Source, Steps
from edgecs.toolcalls.tool import Schema, Tool, resolved

_ENDS = "</parameter>"
_END_LINE = f"\n{_ENDS}"
_KEY = r'/[^<>\n"]{1,128}/'


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

    def compiles(self, tools: Iterable[Tool]) -> bool:
        """See `Family`. What may be a text or not is matched with its schema."""
        return any(Parameters.of(tool).compiles for tool in tools)

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
        seen, known = set[str](), Parameters.of(tools[name])
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
            yield from _value(source, known, key)
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


def _value(source: Source, known: Parameters, key: str) -> Steps[None]:
    """Take the value of a parameter, and yield it as JSON."""
    schema = known.schema(key)
    yield from source.optional("\n")
    if known.reading(schema).other:
        said = yield from source.until(_ENDS)
        yield Arguments(known.as_json(said.removesuffix("\n"), schema))
        return
    yield Arguments('"')
    yield from _text(source)
    yield Arguments('"')


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


def _tool_rules(tool: Tool, rule: str) -> list[str]:
    """The rules of one tool: its parameters in their order, then others."""
    known = Parameters.of(tool)
    parts, lines = list[str](), list[str]()
    for i, key in enumerate(known.listed):
        name = f"{rule}_{i}"
        parts.append(name if key in known.required else f"{name}?")
        begin = text(f"<parameter={key}>\n")
        lines += _value_rules(known, known.schema(key), name, begin)
    if known.more is not None:
        name, key = f"{rule}_more", f"{rule.upper()}_KEY"
        parts.append(f"{name}*")
        begin = f'"<parameter=" {key} ">\\n"'
        lines += _value_rules(known, resolved(known.more, known.root), name, begin)
        others = f" & ~{any_of(map(text, known.listed))}" if known.listed else ""
        lines.append(f"{key}: {_KEY}{others}")
    begin = text(f"<function={tool.name}>\n")
    return [" ".join([f"{rule}:", begin, *parts]), *lines]


def _value_rules(known: Parameters, schema: Schema, name: str, begin: str) -> list[str]:
    """The rules of a parameter, which begins with `begin`."""
    texts, other = known.reading(schema)
    if texts is None:
        return [f"{name}: {begin} raw WS?"]
    options = [*map(text, sorted(texts))]
    lines = list[str]()
    if other or not options:
        options.append(f"{name}_json")
        lines.append(f"{name}_json: {json_rule(known.other(schema))}")
    return [f"{name}: {begin} {any_of(options)} {text(_END_LINE)} WS?", *lines]
