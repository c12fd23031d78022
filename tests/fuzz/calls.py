"""Texts of models with calls and thoughts, for the parsers of all families.

A text is made of what the families write, in any order, with odd texts between. The
parsers may not fail, must find the same however the text is cut, and a call that is
finished must be of a tool that was given, with arguments that are a JSON object.
"""

from __future__ import annotations

import itertools
import json
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from edgecs.errors import EdgecsError
from edgecs.testing.fakes import ByteTokenizer
from edgecs.toolcalls.events import Arguments, Begun, Event, Finished, Text, Thought
from edgecs.toolcalls.family import Family, Parser
from edgecs.toolcalls.form import AnswerForm
from edgecs.toolcalls.gemma import GEMMA_3, GEMMA_4
from edgecs.toolcalls.generic import Generic
from edgecs.toolcalls.harmony import Harmony
from edgecs.toolcalls.hermes import Hermes
from edgecs.toolcalls.llama3 import Llama3
from edgecs.toolcalls.mistral import MistralArgs, MistralList
from edgecs.toolcalls.qwen_coder import QwenCoder
from edgecs.toolcalls.tool import Tool
from edgecs.toolcalls.use import ToolUse
from tests.fuzz import mutate
from tests.toolcalls.merged import joined

FAMILIES: dict[str, Family] = {
    "Hermes": Hermes(),
    "Llama 3": Llama3(),
    "Mistral": MistralList(),
    "Mistral with [ARGS]": MistralArgs(),
    "Qwen3-Coder": QwenCoder(),
    "Gemma 3": GEMMA_3,
    "Gemma 4": GEMMA_4,
    "gpt-oss": Harmony(),
    "generic": Generic(),
}
# Templates of which only the form of thoughts is used.
FORMS = {
    "<think>": "<think>",
    "Gemma 4": "<|channel>thought",
    "gpt-oss": "<|channel|>analysis<|message|>",
}
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "any": {},
        "word": {"type": ["string", "null"]},
        "one": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/small"}]},
        "list": {"type": "array", "items": {"type": "number"}},
        "kind": {"enum": ["a", 1, None]},
    },
    "required": ["city"],
    "$defs": {"small": {"type": "integer", "maximum": 9}},
}
_PIECES = ("<tool_call>", "</tool_call>", "\n", " ", '{"name": "look", ', "look", "go")
_PIECES += ('"arguments": ', '"parameters": ', "{", "}", "[", "]", ",", ":", '"', "\\")
_PIECES += ('{"city": "x"}', '"city"', "days", "12", "null", "true", "-0", "1e999")
_PIECES += ("[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<function=look>", "<function=")
_PIECES += ("</function>", "<parameter=city>", "<parameter=one>", "<parameter=", ">")
_PIECES += ("</parameter>", "<start_function_call>", "<end_function_call>", "<escape>")
_PIECES += ("<|tool_call>", "<tool_call|>", '<|"|>', "call:look{", "call:", "city:")
_PIECES += ("<|channel|>", "analysis", "commentary", "final", "<|message|>", "<|end|>")
_PIECES += ("<|start|>", "assistant", " to=functions.look", "<|constrain|>", "json")
_PIECES += ("<|channel>thought\n", "<channel|>", "<think>", "</think>", "```", "text")
_CALLS = (
    '<tool_call>\n{"name": "look", "arguments": {"city": "x"}}\n</tool_call>',
    '{"name": "look", "parameters": {"city": "x", "days": 1}}',
    '[TOOL_CALLS] [{"name": "look", "arguments": {"city": "x"}}]',
    '[TOOL_CALLS]look[ARGS]{"city": "x"}',
    "<tool_call>\n<function=look>\n<parameter=one>\n12\n</parameter>\n"
    "<parameter=any>\n[1]\n</parameter>\n</function>\n</tool_call>",
    '<|tool_call>call:look{city:<|"|>x<|"|>,list:[1,2],any:{a:null}}<tool_call|>',
    "<start_function_call>call:look{city:<escape>x<escape>}<end_function_call>",
    "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>commentary "
    'to=functions.look <|constrain|>json<|message|>{"city": "x"}',
    "<|channel>thought\nHm\n<channel|>",
    "<think>\nHm\n</think>\n\n",
)


@dataclass(frozen=True)
class Said:
    """An answer of a model of a family, in parts; tools: as JSON."""

    family: str
    form: str
    tools: str
    parts: tuple[str, ...]


def drawn(random: Random) -> Said:
    """A text, often one with a call in it that is nearly in order."""
    pieces = list[str]()
    for _ in range(random.randrange(1, 6)):
        call = random.choice(_CALLS)
        if random.random() < 0.5:
            data = mutate.flipped(call.encode(), random)
            call = data.decode("utf-8", "replace")
        some = random.choices(_PIECES, k=random.randrange(1, 12))
        pieces += random.choice(
            ([call], some, [call, *some], [mutate.words(random, _PIECES)])
        )
    if random.random() < 0.05:
        depth = random.choice((10, 1000, 20_000))
        pieces.insert(random.randrange(len(pieces) + 1), mutate.nested(depth, random))
    text = "".join(pieces)
    places = sorted(random.randrange(len(text) + 1) for _ in range(random.randrange(9)))
    bounds = [0, *places, len(text)]
    parts = [text[a:b] for a, b in itertools.pairwise(bounds)]
    family = random.choice([*FAMILIES])
    return Said(family, random.choice([*FORMS]), _tools(random), tuple(parts))


def _tools(random: Random) -> str:
    parameters: Any = PARAMETERS
    for _ in range(random.choice((0, 0, 1, 3))):
        parameters = mutate.changed(parameters, random)
    if not isinstance(parameters, dict):
        parameters = {}
    names = random.choice((["look"], ["look", "go"], [random.choice(mutate.TEXTS)]))
    return json.dumps([[name, parameters] for name in names])


def checked(said: Said) -> tuple[str, str]:
    """What went wrong, and what was said; the first is empty if nothing did."""
    try:
        tools = [Tool(name, None, schema) for name, schema in json.loads(said.tools)]
        usable = _check_grammar(FAMILIES[said.family], tools)
        if usable:
            _check_parser(FAMILIES[said.family], tools, said.parts)
        _check_thoughts(AnswerForm.of(FORMS[said.form]), said.parts)
    except Exception:
        return "tracebacks", f"{traceback.format_exc()}\n{said!r:.1500}"
    return "", ""


def _check_grammar(family: Family, tools: Sequence[Tool]) -> bool:
    """Whether the tools can be used; a server refuses others before it answers."""
    usable = True
    for required in (False, True):
        try:
            ToolUse(family, tools, required=required).grammar(ByteTokenizer())
        except EdgecsError:
            usable = False
    return usable


def _check_parser(family: Family, tools: Sequence[Tool], parts: Sequence[str]) -> None:
    whole = joined(_parsed(Parser(family, tools), ["".join(parts)]))
    assert joined(_parsed(Parser(family, tools), parts)) == whole, "cuts matter"
    names, text, is_open = {tool.name for tool in tools}, "", False
    for event in whole:
        if isinstance(event, Begun):
            assert event.name in names, event
            assert not is_open, "a call within a call"
            text, is_open = "", True
        elif isinstance(event, Arguments):
            assert is_open, "arguments of no call"
            text += event.text
        elif isinstance(event, Finished):
            assert isinstance(json.loads(text), dict), text
            is_open = False
        elif not isinstance(event, Text | Thought):
            is_open = False
    assert not is_open, "a call without an end"


def _parsed(parser: Parser, parts: Iterable[str]) -> Iterator[Event]:
    for part in parts:
        yield from parser.feed(part)
    yield from parser.flush()
    assert not parser.flush(), "more after the end"


def _check_thoughts(form: AnswerForm, parts: Sequence[str]) -> None:
    text = "".join(parts)
    whole = form.thoughts(open=False)
    found, rest = whole.feed(text), whole.flush()
    separator, tags = form.thoughts(open=False), form.think_tags(open=False)
    cut = [*map(separator.feed, parts), separator.flush()]
    assert "".join(one.answer for one in cut) == found.answer + rest.answer
    assert "".join(one.thought for one in cut) == found.thought + rest.thought
    shown = "".join(map(tags.feed, parts)) + tags.flush()
    assert len(shown) >= len(found.answer + rest.answer)
