"""Parts of grammars that several families have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

from edgecs.toolcalls.tool import Schema, Tool

COMMON = r"""
WS: /[ \t]|(\r?\n){1,2}[ \t]{0,8}/
"""


def text(said: str) -> str:
    """Lark for a text."""
    return json.dumps(said, ensure_ascii=False)


def any_of(options: Iterable[str]) -> str:
    """Lark for one of several."""
    return f"({' | '.join(options)})"


def json_rule(schema: Schema | bool) -> str:
    """Lark for JSON that matches a schema."""
    from edgecs.grammar.mask import WHITESPACE

    if isinstance(schema, bool):
        return f"%json {json.dumps(schema)}"
    spaced = {"whitespace_pattern": WHITESPACE}
    return f"%json {json.dumps({**schema, 'x-guidance': spaced})}"


def rules_for(tools: Sequence[Tool], made: Callable[[Tool, str], str]) -> str:
    """`one`, a call of any of the tools, of which `made` returns the rule.

    `made` gets the name of a rule for the tool's arguments as JSON.
    """
    lines = [f"one: {any_of(f'tool_{i}' for i in range(len(tools)))}"]
    for i, tool in enumerate(tools):
        lines += [
            f"tool_{i}: {made(tool, f'args_{i}')}",
            f"args_{i}: {json_rule(tool.schema)}",
        ]
    return "\n".join([*lines, COMMON])


def json_call(tool: Tool, arguments: str, key: str) -> str:
    """Lark for {"name": ..., KEY: ...}."""
    name = text(json.dumps(tool.name))
    return (
        rf'"{{" WS? "\"name\"" WS? ":" WS? {name} WS? "," WS? "\"{key}\"" WS? ":" WS? '
        f"{arguments} WS?"
    )
