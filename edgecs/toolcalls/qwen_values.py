"""What the text of a parameter stands for in Qwen3-Coder's syntax, by its JSON schema.

Texts are not quoted there, so `1` may be a number or a text: only the schema says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any, NamedTuple

from edgecs.errors import ConfigError
from edgecs.toolcalls.source import Malformed, strict_json
from edgecs.toolcalls.tool import Schema, Tool, referred, resolved

if TYPE_CHECKING:
    from edgecs.grammar.mask import Grammar
    from edgecs.grammar.trie import TokenTrie

_DEEPEST = 64  # levels of alternatives within alternatives
_OTHERS = ("number", "integer", "boolean", "array", "object", "null")
_END = 256  # after the bytes
_PART = 1024  # bytes of a text; chosen: they take some milliseconds
_COMPOSED = frozenset(("allOf", "anyOf", "oneOf", "not"))


class Reading(NamedTuple):
    """What a value may be. texts: which texts; None: any. other: JSON but a text."""

    texts: frozenset[str] | None
    other: bool

    def both(self, more: Reading) -> Reading:
        """What both allow."""
        if self.texts is None or more.texts is None:
            texts = more.texts if self.texts is None else self.texts
        else:
            texts = self.texts & more.texts
        return Reading(texts, self.other and more.other)

    def either(self, more: Reading) -> Reading:
        """What one of them allows."""
        free = self.texts is None or more.texts is None
        texts = None if free else (self.texts or NOTHING) | (more.texts or NOTHING)
        return Reading(texts, self.other or more.other)


NOTHING: frozenset[str] = frozenset()
_ANY, _NONE = Reading(None, other=True), Reading(NOTHING, other=False)


@dataclass(frozen=True)
class Parameters:
    """The parameters of a tool. listed: their schemas; more: that of any other one.

    more: None: there are no others. root: the schema that $ref refers to.
    """

    listed: Mapping[str, Any]
    required: frozenset[str]
    more: Any
    root: Schema

    @staticmethod
    def of(tool: Tool) -> Parameters:
        """Those that the schema of a tool lists, see `Tool.schema`."""
        root = tool.parameters
        found = resolved(root, root)
        listed = found.get("properties")
        open = listed is None or bool(found.keys() & _COMPOSED)
        more = found.get("additionalProperties", open)
        more = None if more is False else {} if more is True else more
        required = frozenset(found.get("required") or ())
        unlisted = {} if more is None else dict.fromkeys(sorted(required), more)
        return Parameters({**unlisted, **(listed or {})}, required, more, root)

    def schema(self, key: str) -> Schema:
        """The schema of a parameter."""
        return resolved(self.listed.get(key, self.more), self.root)

    def reading(self, schema: Schema) -> Reading:
        """What a value of a schema may be."""
        return _reading(schema, self.root, {}, _DEEPEST)

    def whole(self, schema: Schema) -> Schema:
        """A schema with what it may refer to."""
        shared = {k: self.root[k] for k in ("$defs", "definitions") if k in self.root}
        return {**schema, **shared}

    def other(self, schema: Schema) -> Schema:
        """A schema without texts."""
        given = schema.get("type", _OTHERS)
        types = {given} if isinstance(given, str) else {*given}
        return {**self.whole(schema), "type": [one for one in _OTHERS if one in types]}

    def as_json(self, text: str, schema: Schema) -> str:
        """The JSON of a parameter's text, which need not be a text. Raises Malformed.

        It is JSON if that fits the schema, and else a text. A JSON text is one whose
        quotes belong to it.
        """
        reading = self.reading(schema)
        value = _loaded(text)
        only = reading.texts == NOTHING
        if value is not None and (only or self._fits(text, value[0], schema)):
            return text.strip()
        if only:
            raise Malformed
        return json.dumps(text, ensure_ascii=False)

    @property
    def compiles(self) -> bool:
        """Whether a value may have to be matched with a schema, which compiles that."""
        others = [] if self.more is None else [self.more]
        schemas = [resolved(one, self.root) for one in (*self.listed.values(), *others)]
        readings = [self.reading(schema) for schema in schemas if schema]
        return any(one.other and one.texts != NOTHING for one in readings)

    def _fits(self, text: str, value: Any, schema: Schema) -> bool:
        if not schema:
            return True
        whole = json.dumps(self.whole(schema))
        # A grammar has an order of members and white space, the model may have others.
        spelled = (text.strip(), json.dumps(value, ensure_ascii=False))
        return any(_matches(whole, one.encode("utf-8", "replace")) for one in spelled)


def _loaded(text: str) -> Any:
    """The JSON value of a text, as a list of one; None: it is a text."""
    try:
        value = strict_json(text)
    except (ValueError, RecursionError):
        return None
    return None if isinstance(value, str) else [value]


@lru_cache(maxsize=256)
def _grammar(schema: str) -> Grammar:
    from edgecs.grammar.mask import Grammar

    return Grammar.json_schema(schema)


@lru_cache(maxsize=1)
def _trie() -> TokenTrie:
    from edgecs.grammar.trie import TokenTrie

    return TokenTrie([*(bytes([byte]) for byte in range(_END)), b""], {_END})


def _matches(schema: str, text: bytes) -> bool:
    """Whether JSON matches a schema. In parts, between which other threads go on."""
    trie = _trie()
    tokens = trie.of_bytes(text)
    try:
        mask = _grammar(schema).over(trie)
        for end in range(_PART, tokens.size, _PART):
            mask.allows(tokens[:end], _END)
        return mask.allows(tokens, _END)
    except ConfigError:
        return False


def _reading(
    schema: Any, root: Schema, known: dict[str, Reading], levels: int
) -> Reading:
    """What a value may be. known: of the $ref that were followed."""
    if schema is False:
        return _NONE
    if not isinstance(schema, Mapping) or not levels:
        return _ANY
    if "$ref" in schema:
        place = str(schema["$ref"])
        if place not in known:
            known[place] = _NONE  # it adds nothing to itself
            to = referred(place, root)
            known[place] = _reading(to, root, known, levels - 1)
        return known[place]

    def of(name: str) -> list[Reading]:
        given = schema.get(name)
        parts = given if isinstance(given, list) else ()
        return [_reading(one, root, known, levels - 1) for one in parts]

    found = reduce(Reading.both, of("allOf"), _own(schema))
    for name in ("anyOf", "oneOf"):
        if parts := of(name):
            found = found.both(reduce(Reading.either, parts))
    return found


def _own(schema: Schema) -> Reading:
    """What `type`, `enum` and `const` allow."""
    found, types = _ANY, schema.get("type")
    if types is not None:
        given = {types} if isinstance(types, str) else {*types}
        texts = None if "string" in given else NOTHING
        found = Reading(texts, bool(given - {"string"}))
    for values in (
        [schema["const"]] if "const" in schema else None,
        schema.get("enum"),
    ):
        if isinstance(values, list):
            found = found.both(_listed(values))
    return found


def _listed(values: Iterable[Any]) -> Reading:
    every = [*values]
    texts = frozenset(one for one in every if isinstance(one, str))
    return Reading(texts, any(not isinstance(one, str) for one in every))
