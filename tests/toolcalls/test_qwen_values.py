"""In Qwen3-Coder's syntax texts are not quoted: values still match their schema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.testing.fakes import ByteTokenizer
from edgecs.toolcalls.family import Parser
from edgecs.toolcalls.qwen_coder import QwenCoder
from edgecs.toolcalls.tool import Tool
from edgecs.toolcalls.use import ToolUse
from tests.toolcalls.rendering import qwen_coder
from tests.toolcalls.test_constraints import accepts
from tests.toolcalls.test_parsers import calls_of, parsed

DEFS = {
    "words": {"type": ["string", "null"]},
    "loop": {"anyOf": [{"$ref": "#/$defs/loop"}, {"type": "string"}]},
    "small": {"type": "integer", "maximum": 9},
}
STRING, NULL = {"type": "string"}, {"type": "null"}


def tool(schema: Any, **more: Any) -> Tool:
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    return Tool("go", None, {**parameters, "$defs": DEFS, **more})


def call(text: str, key: str = "x") -> str:
    value = f"<parameter={key}>\n{text}\n</parameter>\n"
    return f"<tool_call>\n<function=go>\n{value}</function>\n</tool_call>"


def value(schema: Any, text: str) -> Any:
    ((_, arguments),) = calls_of(
        parsed(Parser(QwenCoder(), [tool(schema)]), [call(text)])
    )
    return arguments["x"]


def allowed(made: Tool, text: str) -> bool:
    use = ToolUse(QwenCoder(), [made], required=True)
    return accepts(use, ByteTokenizer(320), text)


OPTIONAL = [
    {"anyOf": [STRING, NULL]},
    {"oneOf": [STRING, NULL], "default": None},
    {"type": ["string", "null"]},
    {"$ref": "#/$defs/words"},
    {"anyOf": [{"$ref": "#/$defs/words"}, NULL]},
    {"allOf": [{"type": ["string", "null"]}]},
]


@pytest.mark.parametrize("schema", OPTIONAL)
@pytest.mark.parametrize("text", ["12345", "true", '{"a": 1}', "[1]", '"a"', "a", ""])
def test_an_optional_text_stays_a_text(schema: Any, text: str):
    assert value(schema, text) == text
    assert value(schema, "null") is None
    assert allowed(tool(schema), call(text))


@pytest.mark.parametrize(
    ("schema", "text", "expected"),
    [
        ({"anyOf": [STRING, {"$ref": "#/$defs/small"}]}, "5", 5),
        ({"anyOf": [STRING, {"$ref": "#/$defs/small"}]}, "12", "12"),
        ({"anyOf": [STRING, {"type": "array"}]}, "[1,  2]", [1, 2]),
        ({"enum": ["1", 2]}, "1", "1"),
        ({"enum": ["1", 2]}, "2", 2),
        ({"$ref": "#/$defs/loop"}, "12", "12"),
        ({}, "12", 12),
        ({}, "one", "one"),
        ({"anyOf": [{"type": "integer"}, NULL]}, "12", 12),
    ],
)
def test_what_a_value_is(schema: Any, text: str, expected: Any):
    assert value(schema, text) == expected
    assert type(value(schema, text)) is type(expected)
    assert allowed(tool(schema), call(text))


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"anyOf": [{"type": "integer"}, NULL]}, "many"),
        ({"anyOf": [{"$ref": "#/$defs/small"}, NULL]}, "12"),
        ({"anyOf": [{"enum": ["up", "down"]}, NULL]}, "left"),
        ({"anyOf": [{"enum": ["up", "down"]}, NULL]}, '"up"'),
        ({"allOf": [{"type": "integer"}]}, "many"),
        ({"enum": ["up", 1]}, "2"),
    ],
)
def test_what_fits_no_alternative_is_not_allowed(schema: Any, text: str):
    assert not allowed(tool(schema), call(text))


_ATOMS = st.sampled_from([STRING, NULL, {"type": "integer"}, {"type": "boolean"}])
_ATOMS |= st.sampled_from([{"enum": ["a", 1]}, {"const": "true"}, {"type": "object"}])
_ATOMS |= st.sampled_from([{"$ref": f"#/$defs/{name}"} for name in ("words", "small")])
_SCHEMAS = st.recursive(
    _ATOMS,
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda a: {"anyOf": a}),
    max_leaves=4,
)
_TEXTS = st.sampled_from(["a", "true", "1", "12", "null", "{}", '"a"', "[1]", "x y"])


@settings(deadline=None)
@given(schema=_SCHEMAS, text=_TEXTS)
def test_whatever_is_allowed_matches_its_schema(schema: Any, text: str):
    made = tool(schema)
    if allowed(made, call(text)):
        found = {"x": value(schema, text)}
        jsonschema.validate(found, made.parameters)


class TestOthers:
    """Parameters that the schema does not list."""

    def fits(self, parameters: Any, text: str) -> bool:
        return allowed(Tool("go", None, parameters), text)

    @pytest.mark.parametrize(
        "parameters",
        [
            {"type": "object", "additionalProperties": True},
            {"type": "object"},
            {},
            {"properties": {}, "additionalProperties": True},
            {"properties": {"y": STRING}, "additionalProperties": {"type": "integer"}},
        ],
    )
    def test_may_be_given_where_the_schema_allows_them(self, parameters: Any):
        assert self.fits(parameters, call("12"))
        assert self.fits(parameters, qwen_coder([("go", {})]))
        assert self.fits(parameters, qwen_coder([("go", {"a": 1, "b-c": 2})]))
        parser = Parser(QwenCoder(), [Tool("go", None, parameters)])
        assert calls_of(parsed(parser, [call("12")])) == [("go", {"x": 12})]

    def test_match_their_schema(self):
        parameters = {"additionalProperties": {"type": "integer"}}
        assert not self.fits(parameters, call("many"))

    def test_are_not_those_that_are_listed(self):
        listed = {"y": {"type": "integer"}, "z": STRING}
        parameters = {"properties": listed, "additionalProperties": True}
        assert self.fits(parameters, qwen_coder([("go", {"y": 1, "a": "b"})]))
        assert not self.fits(parameters, qwen_coder([("go", {"a": "b", "y": "c"})]))
        assert not self.fits(parameters, qwen_coder([("go", {"z": "b", "y": "c"})]))

    def test_are_refused_otherwise(self):
        assert not self.fits({"properties": {"y": STRING}}, call("12"))
        assert not self.fits({"properties": {}}, call("12"))
        assert not self.fits({"additionalProperties": False}, call("12"))

    def test_may_be_required(self):
        parameters = {"required": ["x"], "additionalProperties": {"type": "integer"}}
        assert self.fits(parameters, call("12"))
        assert not self.fits(parameters, qwen_coder([("go", {})]))
        assert not self.fits(parameters, call("many"))

    def test_those_of_a_reference_are_listed(self):
        inner = {"type": "object", "properties": {"x": {"type": "integer"}}}
        parameters = {"$ref": "#/$defs/all", "$defs": {"all": inner}}
        assert self.fits(parameters, call("12"))
        assert not self.fits(parameters, call("many"))
        assert not self.fits(parameters, call("12", "y"))


def test_a_schema_that_branches_without_end_is_read_at_once():
    defs = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 9} for i in range(40)}
    defs["d40"] = {"anyOf": [{"type": "string"}, *({"$ref": "#/$defs/d0"},) * 9]}
    made = Tool(
        "go", None, {"properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": defs}
    )
    ((_, arguments),) = calls_of(parsed(Parser(QwenCoder(), [made]), [call("12")]))
    assert json.dumps(arguments) == '{"x": "12"}'
