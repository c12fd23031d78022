"""Grammars of tools: they allow what models write, and answers under them are calls."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.errors import ConfigError
from edgecs.grammar.lazy import LazyGrammar
from edgecs.grammar.mask import Grammar
from edgecs.grammar.trie import TokenTrie
from edgecs.testing.fakes import ByteTokenizer, TableModel
from edgecs.text.thoughts import GEMMA
from edgecs.toolcalls.events import Arguments, Begun, Finished, Text
from edgecs.toolcalls.gemma import GEMMA_4
from edgecs.toolcalls.hermes import Hermes
from edgecs.toolcalls.tool import Tool
from edgecs.toolcalls.use import ToolUse
from tests.toolcalls.rendering import FAMILIES, WITHOUT_TAGS, Call

SIZE, END = 320, 319
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
        "unit": {"enum": ["C", "F"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        "near": {"$ref": "#/$defs/point"},
    },
    "required": ["city", "days"],
    "$defs": {
        "point": {
            "type": "object",
            "properties": {"x": {"type": "number"}, "y": {"type": "number"}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}
WEATHER = Tool("get_weather", "The weather", PARAMETERS)
NOW = Tool("now", None, {})
TOOLS = (WEATHER, NOW)
CALLS: list[Call] = [
    ("get_weather", {"city": "Łódź", "days": 3}),
    ("get_weather", {"city": "", "days": 0, "unit": "F", "tags": [True, False]}),
    ("get_weather", {"city": "a", "days": 1, "near": {"x": 1.5, "y": -2}}),
    ("now", {}),
]


class MarkedTokenizer(ByteTokenizer):
    """Bytes, and a control token for each of some texts."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        super().__init__(SIZE)
        self._texts = {256 + i: text for i, text in enumerate(texts)}

    def encode(self, text: str, *, document: bool = True) -> Any:
        for token, spelling in self._texts.items():
            before, found, after = text.partition(spelling)
            if found:
                parts = (self.encode(before), [token], self.encode(after))
                return np.concatenate(parts).astype(np.int32)
        return super().encode(text)


def vocabularies(kind: str) -> list[ByteTokenizer]:
    return [ByteTokenizer(SIZE), MarkedTokenizer(tuple(FAMILIES[kind][0].markers))]


def use(kind: str, **more: Any) -> ToolUse:
    return ToolUse(FAMILIES[kind][0], TOOLS, **more)


def accepts(made: ToolUse, vocabulary: ByteTokenizer, text: str) -> bool:
    """Whether an answer may be this text."""
    grammar, _ = made.grammar(vocabulary)
    mask = grammar.over(TokenTrie.of(vocabulary, SIZE))
    ids = vocabulary.encode(text)
    try:
        steps = (mask.allows(ids[:at], int(ids[at])) for at in range(ids.size))
        return all(steps) and mask.allows(ids, END)
    except ConfigError:
        return False


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_models_write_is_allowed(kind: str):
    _, render, several = FAMILIES[kind]
    for vocabulary in vocabularies(kind):
        for required in (False, True) if kind not in WITHOUT_TAGS else (False,):
            made = use(kind, required=required)
            for call in CALLS:
                assert accepts(made, vocabulary, render([call])), call
            both = several and accepts(made, vocabulary, render(CALLS))
            assert both == several
            one = use(kind, required=required, parallel=False)
            assert accepts(one, vocabulary, render(CALLS[:1]))
            if several:
                assert not accepts(one, vocabulary, render(CALLS))


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(
    "call",
    [
        ("get_weather", {"city": "a"}),
        ("get_weather", {"city": "a", "days": "many"}),
        ("get_weather", {"city": "a", "days": 1, "unit": "K"}),
        ("get_weather", {"city": "a", "days": 1, "other": 1}),
        ("get_weather", {"city": "a", "days": 1, "near": {"y": 1}}),
        ("other", {}),
    ],
)
def test_what_does_not_match_the_schema_is_not(kind: str, call: Call):
    render = FAMILIES[kind][1]
    # Without a tag, JSON with another name is ordinary text.
    free = kind in WITHOUT_TAGS and call[0] == "other"
    for vocabulary in vocabularies(kind):
        assert free == accepts(use(kind), vocabulary, render([call]))


@pytest.mark.parametrize("kind", FAMILIES)
def test_text_is_free_unless_a_call_is_required(kind: str):
    for vocabulary in vocabularies(kind):
        for text in ("", "Hello, {world}: <b> [1] \n"):
            assert accepts(use(kind), vocabulary, text)
            assert not accepts(use(kind, required=True), vocabulary, text)


@pytest.mark.parametrize("kind", FAMILIES)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_answers_under_a_required_call_are_calls(kind: str, seed: int):
    """A random model ends in time, as all of the tool's texts are short."""
    family = FAMILIES[kind][0]
    tool = Tool(
        "go",
        None,
        {
            "type": "object",
            "properties": {"way": {"enum": ["up", "down"]}, "n": {"enum": [1, 22]}},
            "required": ["way", "n"],
        },
    )
    vocabulary = MarkedTokenizer(tuple(family.markers))
    made = ToolUse(family, [tool], required=True, parallel=False)
    grammar, shown = made.grammar(vocabulary)
    assert isinstance(grammar, Grammar)
    mask = grammar.over(TokenTrie.of(vocabulary, SIZE))
    model, ids, text = TableModel(SIZE, seed), np.empty(0, dtype=np.int32), b""
    while ids.size < 400:
        token = int(mask.mask(model.law(ids), ids).argmax())
        if token == END:
            break
        text += shown.get(token) or vocabulary.piece(token)
        ids = np.append(ids, np.int32(token))
    else:
        assert kind.startswith("harmony")  # thoughts have no end
        return
    parser = made.parser()
    events = [*parser.feed(text.decode("utf-8", "replace")), *parser.flush()]
    assert sum(isinstance(event, Begun) for event in events) == 1
    assert Finished() in events
    assert not any(isinstance(event, Text) for event in events)
    said = "".join(event.text for event in events if isinstance(event, Arguments))
    assert json.loads(said)["way"] in ("up", "down")


def lazy(**more: Any) -> LazyGrammar:
    made = ToolUse(Hermes(), TOOLS, **more)
    grammar, _ = made.grammar(ByteTokenizer(SIZE), thinks=more.pop("thinks", None))
    assert isinstance(grammar, LazyGrammar)
    return grammar


def test_a_lazy_mask_is_a_function_of_the_answer_alone():
    """In any order of questions, as after rejected drafts."""
    trie = TokenTrie.of(ByteTokenizer(SIZE), SIZE)
    text = b'Hm <tool_call>{"name": "now", "arguments": {}}</tool_call>'
    ids = np.frombuffer(text, np.uint8).astype(np.int32)
    other = np.frombuffer(b"Hm <tool_box> free", np.uint8).astype(np.int32)
    row = np.zeros(SIZE, dtype=np.float32)
    alone = [lazy().over(trie).mask(row, ids[:n]) for n in range(ids.size)]
    mask, random = lazy().over(trie), np.random.default_rng(3)
    for n in random.integers(0, ids.size, 80).tolist():
        if n % 3 == 0:
            assert mask.mask(row, other[: n % other.size]) is row
        assert np.array_equal(mask.mask(row, ids[:n]), alone[n])


def test_the_token_that_completes_a_trigger_may_have_more_text():
    pieces = [bytes([byte]) for byte in range(256)]
    pieces += [b'call>{"na', b"call>no", b""]
    trie = TokenTrie(pieces, {258})
    made = ToolUse(Hermes(), TOOLS)
    grammar, _ = made.grammar(ByteTokenizer(SIZE))
    assert isinstance(grammar, LazyGrammar)
    grammar = LazyGrammar(grammar.grammar, grammar.triggers, pieces.__getitem__)
    mask = grammar.over(trie)
    start = [*b"so <tool_"]
    inside = np.array([*start, 256], dtype=np.int32)
    assert mask.allows(inside, ord("m"))
    assert not mask.allows(inside, ord("x"))
    free = np.array([*start, 257], dtype=np.int32)
    assert mask.allows(free, ord("x"))
    again = np.array([*free, *b"<tool_call>"], dtype=np.int32)
    assert not mask.allows(again, ord("x"))


def test_thoughts_contain_no_calls():
    trie = TokenTrie.of(ByteTokenizer(SIZE), SIZE)

    def free(text: str, *, thinks: bool, required: bool = False) -> bool:
        made = ToolUse(Hermes(), TOOLS, required=required)
        grammar, _ = made.grammar(ByteTokenizer(SIZE), thinks=thinks)
        ids = ByteTokenizer(SIZE).encode(text)
        return grammar.over(trie).allows(ids, ord("x"))

    assert free("<think> <tool_call>", thinks=False)
    assert not free("<think> </think> <tool_call>", thinks=False)
    assert free(" <tool_call>", thinks=True)
    assert not free("</think><tool_call>", thinks=True)
    assert free("so I", thinks=True, required=True)
    assert not free("so I</think>", thinks=True, required=True)


def test_thoughts_of_gemma_contain_no_calls():
    markers = tuple({*GEMMA_4.markers, *GEMMA.markers})
    vocabulary = MarkedTokenizer(markers)
    trie = TokenTrie.of(vocabulary, SIZE)

    def free(text: str, *, thinks: bool, required: bool = False) -> bool:
        made = ToolUse(GEMMA_4, TOOLS, required=required)
        grammar, shown = made.grammar(vocabulary, thinks=thinks, tags=GEMMA)
        assert {*shown.values()} == {one.encode() for one in markers}
        return grammar.over(trie).allows(vocabulary.encode(text), ord("x"))

    opens, closes = GEMMA.opens, GEMMA.closes
    assert free(f"{opens}\n <|tool_call>", thinks=False)
    assert not free(f"{opens}\n {closes}<|tool_call>", thinks=False)
    assert not free("<|tool_call>", thinks=False)
    assert free("<|tool_call>", thinks=True)
    assert free("so I", thinks=True, required=True)
    assert not free(f"so I{closes}", thinks=True, required=True)


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        (Tool("a b", None, {}), "not a name for a tool"),
        (Tool("", None, {}), "not a name for a tool"),
        (Tool("now", None, {}), "two tools are called now"),
        (Tool("x", None, {"type": "array"}), "parameters of the tool x must be"),
        (Tool("x", None, {"properties": {"a": {"type": "no"}}}), "the tool x: "),
        (Tool("x", None, {"a": ["y" * 1000] * 300}), "the tool x: .*characters"),
    ],
)
def test_tools_that_cannot_be_used_are_refused(tool: Tool, message: str):
    with pytest.raises(ConfigError, match=message):
        ToolUse(Hermes(), [NOW, tool]).grammar(ByteTokenizer(SIZE))


_WORDS = st.sampled_from(["type", "properties", "required", "items", "enum", "const"])
_WORDS |= st.sampled_from(["$ref", "$defs", "anyOf", "additionalProperties", "x"])
_LEAVES = st.none() | st.booleans() | st.integers(-2, 2) | _WORDS
_LEAVES |= st.sampled_from(["object", "string", "array", "#", "#/$defs/x", "#/x/y"])
_SCHEMAS = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("kind", ["hermes", "qwen coder", "gemma 4"])
@settings(deadline=None)
@given(schema=st.dictionaries(_WORDS, _SCHEMAS, max_size=5))
def test_any_schema_is_used_or_refused(kind: str, schema: dict[str, Any]):
    made = ToolUse(FAMILIES[kind][0], [Tool("x", None, schema)], required=True)
    vocabulary = ByteTokenizer(SIZE)
    refused = False
    try:
        grammar, _ = made.grammar(vocabulary)
    except ConfigError:
        refused = True
    if not refused:
        grammar.over(TokenTrie.of(vocabulary, SIZE))
