"""Requests of Ollama's API as chat requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgecs.server.answers.answering import chat_request
from edgecs.server.answers.schemas import ChatRequest as Chat
from edgecs.server.apis.ollama.schemas import (
    ChatRequest,
    GenerateRequest,
    Message,
    ToolCall,
)
from edgecs.server.http.replies import Refused
from edgecs.server.models.engine import Engine

_SAME = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_last_n",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
)


def chat_of(engine: Engine, asked: ChatRequest) -> tuple[Chat, str]:
    """The chat request, and the text with which the answer begins. Raises Refused.

    If the last message is the assistant's, the answer continues it.
    """
    messages = [_message(message) for message in asked.messages]
    beginning, last = "", asked.messages[-1]
    if len(messages) > 1 and last.role == "assistant" and not last.tool_calls:
        beginning = messages.pop()["content"]
    fields = _fields(engine, asked, messages)
    if asked.tools:
        fields["tools"] = asked.tools
    return chat_request(fields), beginning


def generation_of(engine: Engine, asked: GenerateRequest) -> Chat:
    """The chat request of a prompt, with a system message if there is one.

    Raises Refused.
    """
    for name in ("suffix", "template"):
        if getattr(asked, name):
            raise Refused(400, f"{name} is not supported: leave it out, or use raw")
    if asked.images:
        raise _no_images()
    messages = [{"role": "user", "content": asked.prompt}]
    if asked.system:
        messages.insert(0, {"role": "system", "content": asked.system})
    return chat_request(_fields(engine, asked, messages))


def _fields(
    engine: Engine, asked: ChatRequest | GenerateRequest, messages: Any
) -> dict[str, Any]:
    """What chats and generations have in common."""
    fields: dict[str, Any] = {"model": asked.model, "messages": messages}
    if asked.think and not engine.can_think:
        raise Refused(400, f"{asked.model!r:.80} does not support thinking")
    if asked.think is not None:
        fields["chat_template_kwargs"] = {"enable_thinking": bool(asked.think)}
    if isinstance(asked.think, str):
        fields["reasoning_effort"] = asked.think
    if asked.format == "json":
        fields["response_format"] = {"type": "json_object"}
    elif asked.format:
        schema = {"name": "answer", "schema": asked.format}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    if asked.logprobs:
        fields |= {"logprobs": True, "top_logprobs": asked.top_logprobs or 0}
    options = asked.options
    if options is None:
        return fields
    fields |= {name: getattr(options, name) for name in _SAME}
    if options.num_predict is not None and options.num_predict >= 0:
        fields["max_tokens"] = options.num_predict  # below 0: no limit
    if options.top_k is not None:
        fields["top_k"] = max(0, options.top_k)
    return {**fields, "seed": options.seed, "stop": options.stops or None}


def _message(message: Message) -> dict[str, Any]:
    if message.images:
        raise _no_images()
    made: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.thinking:
        made["reasoning_content"] = message.thinking
    if message.tool_calls:
        made["tool_calls"] = [*map(_call, message.tool_calls, range(1 << 10))]
    if message.tool_name:
        made["name"] = message.tool_name
    if message.tool_call_id:
        made["tool_call_id"] = message.tool_call_id
    return made


def _call(call: ToolCall, index: int) -> Mapping[str, Any]:
    function = {
        "name": call.function.name,
        "arguments": json.dumps(call.function.arguments),
    }
    return {"id": call.id or f"call_{index}", "type": "function", "function": function}


def _no_images() -> Refused:
    return Refused(400, "images cannot be read: this model reads text")
