"""Gemma's values as a grammar, from JSON schemas.

Types, properties, required, items, enum and const are constrained, and $ref to $defs;
other parts of a schema (limits, patterns, alternatives) are not, as there is no parser
for them in this syntax.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgecs.errors import ConfigError
from edgecs.toolcalls.family import Markers
from edgecs.toolcalls.lark_rules import COMMON, any_of, text
from edgecs.toolcalls.tool import Schema, Tool, referred

_MOST_RULES = 5_000
_COMMON = r"""
any: string | NUMBER | "true" | "false" | "null" | anys | object
anys: "[" (any ("," any)*)? "]"
object: "{" (member ("," member)*)? "}"
member: KEY ":" any
KEY: /[A-Za-z0-9_.$-]+/
NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/
INTEGER: /-?(0|[1-9][0-9]*)/
"""
_PLAIN = {
    "string": "string",
    "number": "NUMBER",
    "integer": "INTEGER",
    "boolean": '("true" | "false")',
    "null": '"null"',
}


def calls_of(tools: Sequence[Tool], quote: str, marker: Markers) -> str:
    """`one`, a call of any of the tools. Raises ConfigError for too many rules."""
    writer = _Writer(quote, marker)
    options = []
    for tool in tools:
        writer.root = tool.schema
        options.append(f"{text(tool.name)} {writer.value(tool.schema)}")
    return "\n".join([f"one: {any_of(options)}", *writer.lines, _COMMON, COMMON])


class _Writer:
    """Collects the rules. root: the schema that $ref refers to."""

    root: Schema

    def __init__(self, quote: str, marker: Markers) -> None:
        self._quote, self._marker = quote, marker
        self._refs: dict[tuple[int, str], str] = {}
        q, token = text(quote), marker.token(quote)
        tokens = f" | {token} TEXT? {token}" if token else ""
        self.lines = [
            f"string: {q} quoted{tokens}",
            f"quoted[suffix={q}]: /(.|\\n)*/",
            "TEXT: /(.|\\n)+/",
        ]

    def value(self, schema: Schema | bool) -> str:
        """Lark for a value of a schema."""
        if not isinstance(schema, Mapping):
            return "any"
        if "$ref" in schema:
            return self._reference(str(schema["$ref"]))
        if "enum" in schema or "const" in schema:
            values = schema["enum"] if "enum" in schema else [schema["const"]]
            return any_of(map(self._literal, values)) if values else "any"
        kind = schema.get("type")
        if isinstance(kind, list) and kind:
            return any_of(self._typed(schema, one) for one in kind)
        return self._typed(schema, kind)

    def _typed(self, schema: Schema, kind: Any) -> str:
        if kind == "array":
            item = self.value(schema.get("items", True))
            return self._rule(f'"[" ({item} ("," {item})*)? "]"')
        if kind == "object":
            return self._object(schema)
        return _PLAIN.get(kind, "any") if isinstance(kind, str) else "any"

    def _object(self, schema: Schema) -> str:
        properties = schema.get("properties")
        if not isinstance(properties, Mapping) or not properties:
            return "object" if schema.get("additionalProperties", True) else '"{}"'
        required = {*schema.get("required", ())}
        first = rest = ""  # what may follow no member, and what may follow one
        # The templates sort them, so this is the order that the model has seen.
        for key in sorted(properties, key=str.lower, reverse=True):
            one = properties[key]
            member = f"{text(f'{key}:')} {self.value(one)}"
            begun = self._rule(f"{member} {rest}".rstrip())
            then = self._rule(f'"," {begun}')
            if key in required:
                first, rest = begun, then
            else:
                first = any_of(filter(None, (begun, first))) + ("" if first else "?")
                first = first if "?" not in first else self._rule(first)
                rest = self._rule(
                    any_of(filter(None, (then, rest))) + ("" if rest else "?")
                )
        return self._rule(f'"{{" {first} "}}"')

    def _reference(self, place: str) -> str:
        known = self._refs.get((id(self.root), place))
        if known is not None:
            return known
        name = self._refs[id(self.root), place] = self._name()
        self.lines.append("")
        at = len(self.lines) - 1
        self.lines[at] = f"{name}: {self.value(referred(place, self.root) or True)}"
        return name

    def _literal(self, value: Any) -> str:
        if isinstance(value, str):
            q = self._marker(self._quote)
            return f"{q} {text(value)} {q}" if value else f"{q} {q}"
        if value is None or isinstance(value, bool | int | float):
            return text(json.dumps(value))
        return "any"

    def _rule(self, body: str) -> str:
        name = self._name()
        self.lines.append(f"{name}: {body}")
        return name

    def _name(self) -> str:
        if len(self.lines) > _MOST_RULES:
            raise ConfigError(
                f"the schemas of the tools need more than {_MOST_RULES} rules: make "
                "them smaller"
            )
        return f"r{len(self.lines)}"
