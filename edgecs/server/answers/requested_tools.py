"""From requests to tools, and messages about calls in the form of chat templates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from edgecs.errors import ConfigError
from edgecs.server.answers.schemas import Message
from edgecs.server.answers.tool_schemas import CalledTool, NamedChoice, ToolFields
from edgecs.toolcalls.family import Family
from edgecs.toolcalls.tool import Tool
from edgecs.toolcalls.use import ToolUse


def tool_use(family: Family, asked: ToolFields) -> ToolUse | None:
    """The tools that an answer may call; None: there are none. Raises ConfigError."""
    choice, only = asked.tool_choice, None
    if isinstance(choice, NamedChoice):
        only, choice = choice.function.name, "required"
    if not asked.tools or choice == "none":
        if choice == "required":
            raise ConfigError("tool_choice asks for a call, and there are no tools")
        return None
    tools = [
        Tool(one.name, one.description, one.parameters or {"type": "object"})
        for one in (spec.function for spec in asked.tools)
    ]
    names = [tool.name for tool in tools]
    if only is not None and only not in names:
        raise ConfigError(
            f"tool_choice names {only!r:.80}, which is not one of the tools: "
            f"{', '.join(names):.200}"
        )
    return ToolUse(
        family,
        tools,
        only,
        required=choice == "required",
        parallel=asked.parallel_tool_calls is not False,
    )


def told(
    family: Family, messages: Sequence[Message], use: ToolUse | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The messages and the tools, as the chat template gets them."""
    plain, names = list[dict[str, Any]](), dict[str, str]()
    for message in messages:
        made = message.plain()
        if message.tool_calls:
            made["tool_calls"] = [*map(_call, message.tool_calls)]
            names |= {call.id: call.function.name for call in message.tool_calls}
        if message.reasoning_content:
            made["reasoning_content"] = message.reasoning_content
        if message.role == "tool":
            number = message.tool_call_id or ""
            made["tool_call_id"] = number
            made["name"] = message.name or names.get(number, "")
        plain.append(made)
    changed, tools = family.messages(plain, use.tools if use else ())
    return [dict(one) for one in changed], [tool.plain for tool in tools]


def failed(result: str) -> str:
    """The result of a tool that failed; templates have no field that says so."""
    return f"Error: {result}" if result.strip() else "Error"


def _call(call: CalledTool) -> dict[str, Any]:
    arguments = call.function.arguments
    if isinstance(arguments, str):
        arguments = _loaded(arguments)
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _loaded(text: str) -> Any:
    """Arguments as an object, which most templates need; as text if they are none."""
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text
