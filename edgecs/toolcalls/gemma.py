"""Gemma: call:name{key:value}, in which texts stand between quotes of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgecs.text.triggers import Triggers
from edgecs.toolcalls.events import Arguments, Begun, Finished
from edgecs.toolcalls.family import Marked, Markers, Message, Wanted
from edgecs.toolcalls.gemma_rules import calls_of
from edgecs.toolcalls.source import Malformed, Source, Steps
from edgecs.toolcalls.tool import Tool

_DEEPEST = 64  # levels of a value
_SCALAR = re.compile(r"(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)")
_AFTER = ",}]"  # what may follow a value


class Gemma(Marked):
    """OPENS call:NAME{key:value,...} CLOSES; see `GEMMA_3` and `Gemma4`."""

    def __init__(self, name: str, opens: str, closes: str, quote: str) -> None:
        self.name, self.opens, self.closes, self.quote = name, opens, closes, quote
        self.markers = (opens, closes, quote)
        self.triggers = Triggers((opens,))

    def rules(self, wanted: Wanted, marker: Markers) -> str:
        """See `Family`."""
        more = " (WS? call)*" if wanted.parallel else ""
        return (
            f"calls: call{more}\n"
            f'call: {marker(self.opens)} "call:" one {marker(self.closes)}\n'
            f"{calls_of(wanted.tools, self.quote, marker)}"
        )

    def call(self, source: Source, tools: Mapping[str, Tool]) -> Steps[None]:
        """See `Family`."""
        for part in (self.opens, "call:"):
            yield from source.literal(part)
            yield from source.space()
        name = yield from source.name({*tools}, "{")
        source.at -= 1
        yield Begun(name)
        yield from self._value(source, _DEEPEST)
        yield from source.space()
        yield from source.literal(self.closes)
        yield Finished()
        source.keep()

    def _value(self, source: Source, levels: int) -> Steps[None]:
        """Take a value, and yield it as JSON."""
        if not levels:
            raise Malformed
        letter = yield from source.next()
        if letter in "{[":
            yield from self._members(source, levels, letter)
        elif letter == self.quote[0]:
            yield from source.literal(self.quote)
            said = yield from source.until(self.quote)
            yield Arguments(json.dumps(said, ensure_ascii=False))
        else:
            yield Arguments((yield from _scalar(source)))

    def _members(self, source: Source, levels: int, opens: str) -> Steps[None]:
        """Take an object or a list, and yield it as JSON."""
        closes, before = ("}", "{") if opens == "{" else ("]", "[")
        seen = set[str]()
        source.at += 1
        yield from source.space()
        if (yield from source.next()) == closes:
            source.at += 1
            yield Arguments(before + closes)
            return
        while True:
            yield Arguments(before)
            if opens == "{":
                key = yield from self._key(source)
                if key in seen:
                    raise Malformed
                seen.add(key)
                yield Arguments(f"{json.dumps(key, ensure_ascii=False)}: ")
                yield from source.space()
            yield from self._value(source, levels - 1)
            yield from source.space()
            if (yield from source.one_of(",", closes)) == closes:
                yield Arguments(closes)
                return
            before = ", "
            yield from source.space()

    def _key(self, source: Source) -> Steps[str]:
        """Take a name and its colon; it may be quoted."""
        if (yield from source.optional(self.quote)):
            key = yield from source.until(self.quote)
            yield from source.literal(":")
            return key
        return (yield from source.until(":"))


def _scalar(source: Source) -> Steps[str]:
    """Take a number, true, false or null."""
    while not any(letter in _AFTER for letter in source.rest):
        yield from source.more()
    rest = source.rest
    end = min(at for letter in _AFTER if (at := rest.find(letter)) >= 0)
    said = rest[:end].rstrip()
    if not _SCALAR.fullmatch(said):
        raise Malformed
    source.at += end
    return said


class Gemma4(Gemma):
    """Gemma 4, of which not all templates know messages of tools.

    All of them write the `tool_responses` of the message with the calls.
    """

    def messages(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[Sequence[Message], Sequence[Tool]]:
        """See `Family`. Calls, their results and the text after them are a message.

        The templates write the text of a message after its results, so what was said
        before the calls becomes the end of the thoughts.
        """
        made, turn = list[Message](), None
        for at, message in enumerate(messages):
            role, plain = message["role"], not message.get("tool_calls")
            if role == "assistant" and not plain:
                turn = _with_thoughts(message)
                made.append(turn)
            elif role == "tool" and turn is not None:
                known = turn.setdefault("tool_responses", [])
                known.append({"name": message["name"], "response": message["content"]})
            elif role == "assistant" and turn and at + 1 < len(messages):
                turn["content"], turn = message["content"], None
            else:
                made.append(message)
                turn = None
        return made, tools


def _with_thoughts(message: Message) -> dict[str, Any]:
    """A message with calls, whose text is part of its thoughts."""
    texts = [message.get("reasoning_content"), message.get("content")]
    thought = "\n\n".join(filter(None, texts))
    made = {**message, "content": ""}
    return {**made, "reasoning_content": thought} if thought else made


GEMMA_3 = Gemma("Gemma 3", "<start_function_call>", "<end_function_call>", "<escape>")
GEMMA_4 = Gemma4("Gemma 4", "<|tool_call>", "<tool_call|>", '<|"|>')
