"""Calls that are written and parsed are the same, however the text arrives."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.toolcalls.events import (
    Arguments,
    Begun,
    Event,
    Finished,
    Text,
    Thought,
    Withdrawn,
)
from edgecs.toolcalls.family import Parser
from edgecs.toolcalls.harmony import Harmony
from edgecs.toolcalls.hermes import Hermes
from edgecs.toolcalls.source import Malformed, loaded
from edgecs.toolcalls.tool import Tool
from tests.toolcalls.merged import joined
from tests.toolcalls.rendering import FAMILIES, NO_TEXT_BEFORE, Call

KEYS = st.text("abcXYZ_09", min_size=1, max_size=6)
WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.text(
    '{}[]"\\:,<>/|é', max_size=8
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(KEYS, VALUES, max_size=4)
NAMES = ("get_weather", "get", "a.b-c")
CALLS = st.lists(st.tuples(st.sampled_from(NAMES), ARGUMENTS), min_size=1, max_size=3)
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number"}
_TYPES |= {list: "array", dict: "object", type(None): "null"}


def tools_for(calls: Sequence[Call]) -> list[Tool]:
    """Tools whose parameters have the types of the calls' arguments.

    Qwen's syntax needs them: a number and a text of digits look the same there.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
    for name, args in calls:
        for key, value in args.items():
            kind = _TYPES[type(value)]
            known = found[name].setdefault(key, {"type": kind})
            if known["type"] != kind:
                return []
    return [
        Tool(name, None, {"type": "object", "properties": properties})
        for name, properties in found.items()
    ]


def parsed(parser: Parser, parts: Iterable[str]) -> list[Event]:
    events = [event for part in parts for event in parser.feed(part)]
    events += parser.flush()
    assert parser.flush() == []
    return joined(events)


def cut(text: str, places: Iterable[int]) -> list[str]:
    bounds = [0, *sorted({place % (len(text) + 1) for place in places}), len(text)]
    return [text[a:b] for a, b in pairwise(bounds)]


def calls_of(events: Iterable[Event]) -> list[Call]:
    calls, name, text = list[Call](), "", ""
    for event in events:
        if isinstance(event, Begun):
            name, text = event.name, ""
        elif isinstance(event, Arguments):
            text += event.text
        elif isinstance(event, Finished):
            calls.append((name, json.loads(text)))
    return calls


def fits(kind: str, calls: Sequence[Call]) -> bool:
    """Whether the syntax can express the calls."""
    said = json.dumps(calls, ensure_ascii=False)
    several = FAMILIES[kind][2]
    if "gemma" in kind:  # its quotes have no escape
        return not any(quote in said for quote in ("<escape>", '<|\\"|>'))
    if kind == "qwen coder":
        return "</parameter>" not in said and bool(tools_for(calls))
    return several or len(calls) == 1


@pytest.mark.parametrize("kind", FAMILIES)
@given(calls=CALLS, places=st.lists(st.integers(0, 400), max_size=12))
def test_written_calls_are_parsed(kind: str, calls: list[Call], places: list[int]):
    family, render, several = FAMILIES[kind]
    calls = calls if several else calls[:1]
    tools = tools_for(calls)
    if not fits(kind, calls) or not tools:
        return
    text = render(calls)
    events = parsed(Parser(family, tools), cut(text, places))
    assert calls_of(events) == calls
    assert {type(event) for event in events} <= {Begun, Arguments, Finished}
    assert events == parsed(Parser(family, tools), [text])
    assert events == parsed(Parser(family, tools), text)


@pytest.mark.parametrize("kind", FAMILIES)
@given(calls=CALLS, at=st.integers(0, 400), before=st.sampled_from(["", "I will. "]))
def test_a_call_that_is_cut_off_is_text(
    kind: str, calls: list[Call], at: int, before: str
):
    family, render, several = FAMILIES[kind]
    calls = calls if several else calls[:1]
    tools = tools_for(calls)
    if not fits(kind, calls) or not tools:
        return
    before = "" if kind in NO_TEXT_BEFORE else before
    text = before + render(calls)
    text = text[: at % len(text)]
    events = parsed(Parser(family, tools), text)
    assert events == parsed(Parser(family, tools), [text])
    found = calls_of(events)
    assert found == calls[: len(found)]
    said = "".join(event.text for event in events if isinstance(event, Text))
    begun = sum(isinstance(event, Begun) for event in events)
    if begun > len(found):
        assert Withdrawn() in events
    if not found and "harmony" not in kind:
        assert said == text
    assert text.endswith(said[len(before) :])


@pytest.mark.parametrize("kind", FAMILIES)
@given(text=st.text(max_size=60), places=st.lists(st.integers(0, 60), max_size=6))
def test_text_without_calls_stays_text(kind: str, text: str, places: list[int]):
    parser = Parser(FAMILIES[kind][0], [Tool("get", None, {})])
    assert parsed(parser, cut(text, places)) == ([Text(text)] if text else [])


@pytest.mark.parametrize("kind", FAMILIES)
@given(data=st.data())
def test_hostile_text_is_parsed_the_same_in_any_parts(kind: str, data: st.DataObject):
    """Nothing is lost but white space and what belongs to complete calls."""
    family, render, _ = FAMILIES[kind]
    whole = render([("get", {"a": "x", "b": [1]})])
    pieces = [whole, whole[: len(whole) // 2], *family.markers, '{"name": ', "\n", "x"]
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=6)))
    places = data.draw(st.lists(st.integers(0, 400), max_size=8))
    tools = tools_for([("get", {"a": "x", "b": [1]})])
    events = parsed(Parser(family, tools), cut(text, places))
    assert events == parsed(Parser(family, tools), [text])
    for name, args in calls_of(events):
        assert (name, args) == ("get", {"a": "x", "b": [1]})


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("hermes", "<tool_call>hello</tool_call>"),
        ("hermes", '<tool_call>{"name": "other", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "get", "arguments": {"a": NaN}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "get", "arguments": []}</tool_call>'),
        ("hermes", '<tool_call>{"name": "get", "arguments": {,}}</tool_call>'),
        ("llama3", '{"name": "Bob", "age": 3}'),
        ("mistral", "[TOOL_CALLS] nothing"),
        ("mistral with args", "[TOOL_CALLS]other[ARGS]{}"),
        ("qwen coder", "<tool_call><function=get>what</function></tool_call>"),
        ("gemma 4", "<|tool_call>call:get{a:b}<tool_call|>"),
        ("gemma 4", "<|tool_call>call:get" + "{a:" * 2000),
    ],
)
def test_a_malformed_call_is_text(kind: str, text: str):
    events = parsed(Parser(FAMILIES[kind][0], [Tool("get", None, {})]), text)
    assert calls_of(events) == []
    assert Withdrawn() in events
    said = "".join(event.text for event in events if isinstance(event, Text))
    assert said == text


def test_a_name_comes_before_its_arguments():
    parser = Parser(FAMILIES["hermes"][0], [Tool("get", None, {})])
    assert parser.feed('Well. <tool_call>{"name": "get"') == [
        Text("Well."),
        Begun("get"),
    ]
    assert parser.inside
    assert parser.feed(', "arguments": {"a"') == [Arguments('{"a"')]
    assert parser.feed(": 1}}</tool_") == [Arguments(": 1}")]
    assert parser.feed("call>") == [Finished()]
    parser.flush()
    assert not parser.inside


def test_harmony_has_channels():
    text = (
        "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"
        "<|channel|>commentary<|message|>I ask.<|end|><|start|>assistant"
        '<|channel|>commentary to=functions.get <|constrain|>json<|message|>{"a": 1}'
    )
    expected = [Thought("Let me see."), Text("I ask."), Begun("get")]
    expected += [Arguments('{"a": 1}'), Finished()]
    assert parsed(Parser(Harmony(), [Tool("get", None, {})]), text) == expected


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_arguments_have_finite_numbers(number: str):
    with pytest.raises(Malformed):
        loaded(f'{{"x": {number}}}')
    text = f'<tool_call>{{"name": "f", "arguments": {{"x": {number}}}}}</tool_call>'
    parser = Parser(Hermes(), [Tool("f", None, {})])
    events = [*parser.feed(text), *parser.flush()]
    assert not any(isinstance(event, Finished) for event in events)


@pytest.mark.parametrize(
    "text",
    [
        f"<|channel|>{'a' * 600}<|message|>b",
        f"<|channel|>final{' ' * 495}<|message|>b",
        f"{' ' * 600}<|channel|>final<|message|>b",
        f"{' ' * 510}<|channel|>final<|message|>b",
    ],
)
@given(places=st.lists(st.integers(480, 640), max_size=4))
def test_a_long_header_of_gpt_oss_is_parsed_however_it_is_cut(
    text: str, places: list[int]
):
    whole = parsed(Parser(Harmony(), []), [text])
    assert parsed(Parser(Harmony(), []), cut(text, places)) == whole
