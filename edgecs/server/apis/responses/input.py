"""Requests of OpenAI's Responses API as chat requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgecs.server.answers.answering import chat_request
from edgecs.server.answers.schemas import ChatRequest
from edgecs.server.apis.responses.schemas import (
    FunctionCall,
    FunctionResult,
    Item,
    Message,
    ObjectFormat,
    OtherPart,
    Part,
    Reasoning,
    Reference,
    RefusalPart,
    ResponsesRequest,
    SchemaFormat,
)
from edgecs.server.http.replies import Refused

_STORED = "this server stores no responses: send the whole conversation as `input`"


def as_chat(asked: ResponsesRequest) -> ChatRequest:
    """The chat request. Raises Refused."""
    _check(asked)
    fields: dict[str, Any] = {
        "model": asked.model,
        "messages": _messages(asked),
        "max_tokens": asked.max_output_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        **_format(asked),
        **_tools(asked),
    }
    if asked.reasoning is not None:
        fields["reasoning_effort"] = asked.reasoning.effort
    if asked.with_logprobs:
        fields |= {"logprobs": True, "top_logprobs": asked.top_logprobs or 0}
    return chat_request(fields)


def _check(asked: ResponsesRequest) -> None:
    """Raises Refused for what this server does not do."""
    if asked.previous_response_id is not None or asked.conversation is not None:
        name = "conversation" if asked.conversation is not None else ""
        name = name or "previous_response_id"
        raise Refused(400, f"{name} is not supported: {_STORED}", param=name)
    if asked.store:
        text = f"store: true is not supported: {_STORED}, with store: false"
        raise Refused(400, text, param="store")
    for name in ("background", "prompt"):
        if getattr(asked, name):
            raise Refused(400, f"{name} is not supported: leave it out", param=name)


def _messages(asked: ResponsesRequest) -> list[dict[str, Any]]:
    messages = list[dict[str, Any]]()
    if asked.instructions:
        messages.append({"role": "system", "content": asked.instructions})
    if isinstance(asked.input, str):
        return [*messages, {"role": "user", "content": asked.input}]
    for item in asked.input:
        _add(item, messages)
    return messages


def _add(item: Item, messages: list[dict[str, Any]]) -> None:
    """Add an item: thoughts, the text after them and calls are one message."""
    last = messages[-1] if messages else {}
    answers = last.get("role") == "assistant"
    if isinstance(item, FunctionCall):
        if not answers:
            messages.append({"role": "assistant", "content": ""})
        messages[-1].setdefault("tool_calls", []).append(_call(item))
    elif isinstance(item, Reasoning):
        if item.text and (
            not answers or (last["content"] and "tool_calls" not in last)
        ):
            messages.append({"role": "assistant", "content": ""})
        if item.text:
            before = messages[-1].get("reasoning_content")
            messages[-1]["reasoning_content"] = "\n\n".join(
                filter(None, (before, item.text))
            )
    elif isinstance(item, Message) and item.role == "assistant" and _thinks(last):
        last["content"] = _text(item.content)
    else:
        messages.append(_message(item))


def _thinks(message: dict[str, Any]) -> bool:
    """Whether it has nothing but thoughts."""
    has = message.keys() - {"role"} if message.get("content") == "" else set()
    return has == {"content", "reasoning_content"}


def _message(item: Message | FunctionResult | Reference) -> dict[str, Any]:
    if isinstance(item, Reference):
        raise Refused(400, f"item_reference is not supported: {_STORED}")
    if isinstance(item, FunctionResult):
        text = _text(item.output)
        return {"role": "tool", "tool_call_id": item.call_id, "content": text}
    return {"role": item.role, "content": _text(item.content)}


def _call(item: FunctionCall) -> dict[str, Any]:
    function = {"name": item.name, "arguments": item.arguments}
    return {"id": item.call_id, "type": "function", "function": function}


def _text(content: str | Sequence[Part]) -> str:
    if isinstance(content, str):
        return content
    texts = list[str]()
    for part in content:
        if isinstance(part, OtherPart):
            raise Refused(
                400,
                f"a part of type {part.type} cannot be read: this model reads text, "
                "so send input_text",
            )
        texts.append(part.refusal if isinstance(part, RefusalPart) else part.text)
    return "".join(texts)


def _format(asked: ResponsesRequest) -> dict[str, Any]:
    form = asked.text.format if asked.text else None
    if isinstance(form, ObjectFormat):
        return {"response_format": {"type": "json_object"}}
    if isinstance(form, SchemaFormat):
        schema = {"name": form.name, "schema": form.schema_}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {}


def _tools(asked: ResponsesRequest) -> dict[str, Any]:
    """Tools in the form of chats, which have their function apart."""
    if not asked.tools:
        return {}
    tools = list[dict[str, Any]]()
    for tool in asked.tools:
        if tool.get("type") != "function":
            raise Refused(
                400,
                f"a tool of type {tool.get('type')!r:.80} is not supported: this "
                "server knows function tools",
                param="tools",
            )
        known = ("name", "description", "parameters", "strict")
        function = {name: tool[name] for name in known if tool.get(name) is not None}
        tools.append({"type": "function", "function": function})
    choice = asked.tool_choice
    if isinstance(choice, dict):
        named = {"name": choice.get("name")}
        choice = {"type": "function", "function": named}
    made: dict[str, Any] = {"tools": tools}
    if choice is not None:
        made["tool_choice"] = choice
    if asked.parallel_tool_calls is not None:
        made["parallel_tool_calls"] = asked.parallel_tool_calls
    return made
