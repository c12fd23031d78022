"""Requests of Anthropic's API as chat requests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgecs.server.answers.answering import chat_request
from edgecs.server.answers.requested_tools import failed
from edgecs.server.answers.schemas import ChatRequest
from edgecs.server.apis.anthropic.schemas import (
    Block,
    CountRequest,
    Message,
    MessagesRequest,
    OtherBlock,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
)
from edgecs.server.http.replies import Refused

_BETWEEN = "\n\n"  # blocks of text are paragraphs
_CHOICES: Mapping[str, str] = {"auto": "auto", "any": "required", "none": "none"}


def as_chat(asked: CountRequest) -> tuple[ChatRequest, str]:
    """The chat request, and the text with which the answer begins. Raises Refused.

    If the last message is the assistant's, the answer continues it.
    """
    messages = [*_system(asked.system)]
    for message in asked.messages:
        messages += _converted(message)
    turns, beginning = _in_turns(messages), ""
    last = turns[-1] if len(turns) > 1 else {}
    if last.get("role") == "assistant" and "tool_calls" not in last:
        beginning = turns.pop()["content"].rstrip()
    fields: dict[str, Any] = {"messages": turns, "model": asked.model}
    options: dict[str, Any] = {}
    if asked.thinking is not None:
        options["enable_thinking"] = asked.thinking.type != "disabled"
    if asked.output_config is not None:
        options["reasoning_effort"] = asked.output_config.effort
    fields["chat_template_kwargs"] = options or None
    if asked.output_config is not None and asked.output_config.format is not None:
        schema = {"name": "answer", "schema": asked.output_config.format.schema_}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    fields |= _tools(asked.tools, asked.tool_choice)
    if isinstance(asked, MessagesRequest):
        fields |= {
            "max_tokens": asked.max_tokens,
            "stop": asked.stop_sequences or None,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "top_k": asked.top_k,
        }
    return chat_request(fields), beginning


def _system(system: str | list[TextBlock] | None) -> Iterator[dict[str, Any]]:
    if isinstance(system, list):
        system = _BETWEEN.join(block.text for block in system)
    if system:
        yield {"role": "system", "content": system}


def _converted(message: Message) -> Iterator[dict[str, Any]]:
    """A message as one of chats, after one for each result of a tool."""
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
        return
    texts, thoughts, calls = list[str](), list[str](), list[dict[str, Any]]()
    for block in message.content:
        _check(block)
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ToolUseBlock):
            calls.append(_call(block))
        elif isinstance(block, ThinkingBlock):
            thoughts += filter(None, [block.thinking])
        elif isinstance(block, ToolResultBlock):
            yield _result(block)
    if texts or thoughts or calls:
        made: dict[str, Any] = {"role": message.role, "content": _BETWEEN.join(texts)}
        if thoughts:
            made["reasoning_content"] = _BETWEEN.join(thoughts)
        yield {**made, "tool_calls": calls} if calls else made


def _check(block: Block) -> None:
    if isinstance(block, OtherBlock):
        raise Refused(
            400,
            f"a block of type {block.type} cannot be read: this model reads text, so "
            "send text blocks",
        )


def _call(block: ToolUseBlock) -> dict[str, Any]:
    function = {"name": block.name, "arguments": json.dumps(block.input)}
    return {"id": block.id, "type": "function", "function": function}


def _result(block: ToolResultBlock) -> dict[str, Any]:
    content = block.content
    if isinstance(content, list):
        texts = list[str]()
        for part in content:
            _check(part)
            if isinstance(part, TextBlock):
                texts.append(part.text)
        content = _BETWEEN.join(texts)
    if block.is_error:
        content = failed(content)
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}


def _in_turns(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages; consecutive ones of the user or the assistant are one."""
    turns = list[dict[str, Any]]()
    for message in messages:
        last = turns[-1] if turns else None
        if last and last["role"] == message["role"] in ("user", "assistant"):
            for name in ("content", "reasoning_content"):
                texts = [*filter(None, (last.get(name), message.get(name)))]
                last |= {name: _BETWEEN.join(texts)} if texts else {}
            calls = [*last.get("tool_calls", ()), *message.get("tool_calls", ())]
            last |= {"tool_calls": calls} if calls else {}
        else:
            turns.append(message)
    return turns


def _tools(tools: Sequence[Tool] | None, choice: ToolChoice | None) -> dict[str, Any]:
    if not tools:
        return {}
    made: dict[str, Any] = {"tools": [_function(tool) for tool in tools]}
    if choice is not None:
        named = {"type": "function", "function": {"name": choice.name}}
        made["tool_choice"] = _CHOICES.get(choice.type, named)
        made["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    return made


def _function(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}
