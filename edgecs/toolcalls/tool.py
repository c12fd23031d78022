"""Tools that a model may call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgecs.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,127}")
_MOST_REFS = 8  # that refer to each other
Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Tool:
    """A function of the client. parameters: JSON schema of an object."""

    name: str
    description: str | None
    parameters: Schema

    @property
    def plain(self) -> dict[str, Any]:
        """The tool in the form of chat templates, which is OpenAI's."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        return {
            "type": "function",
            "function": {**function, "parameters": dict(self.parameters)},
        }

    @property
    def schema(self) -> Schema:
        """The schema that arguments are constrained by.

        As in llama.cpp, parameters that are not listed are not allowed unless the
        schema says so.
        """
        given = {**self.parameters, "type": "object"}
        composed = given.keys() & {"$ref", "allOf", "anyOf", "oneOf", "not"}
        if "properties" in given and not composed:
            given.setdefault("additionalProperties", False)
        return given


def resolved(schema: Any, root: Schema) -> Schema:
    """A schema, or the part of `root` that its $ref names; {} for none."""
    for _ in range(_MOST_REFS):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            break
        schema = referred(str(schema["$ref"]), root)
    return schema if isinstance(schema, Mapping) else {}


def referred(place: str, root: Schema) -> Any:
    """The part of a schema at a JSON pointer such as #/$defs/x; None: there is none."""
    found: Any = root
    if place != "#" and not place.startswith("#/"):
        return None
    for part in place.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def checked_tools(tools: Sequence[Tool]) -> tuple[Tool, ...]:
    """The tools, of which every name is a valid one and used once, and every schema.

    Raises ConfigError.
    """
    from edgecs.grammar.mask import Grammar

    names = set[str]()
    for tool in tools:
        if not _NAME.fullmatch(tool.name):
            raise ConfigError(
                f"{tool.name!r:.80} is not a name for a tool: use up to 128 letters, "
                "digits, _, -, ., : and /, starting with a letter, a digit or _"
            )
        if tool.name in names:
            raise ConfigError(f"two tools are called {tool.name}: rename one")
        names.add(tool.name)
        if tool.parameters.get("type", "object") != "object":
            raise ConfigError(
                f"the parameters of the tool {tool.name} must be a schema of type "
                f"object, got {tool.parameters['type']!r:.80}"
            )
        try:
            Grammar.json_schema(tool.schema)
        except ConfigError as error:
            raise ConfigError(f"the tool {tool.name}: {error}") from None
    return tuple(tools)
