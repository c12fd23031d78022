"""Anthropic's API: messages, and the number of their tokens."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgecs.server.answers.answering import (
    Answers,
    Usage,
    chat_answers,
    incomplete_calls,
)
from edgecs.server.answers.answering import chat_prompt as prompt_of
from edgecs.server.answers.choice import Call, Called, Choice, Part, Reason
from edgecs.server.apis.anthropic.input import as_chat
from edgecs.server.apis.anthropic.schemas import CountRequest, MessagesRequest
from edgecs.server.apis.endpoint import Endpoint
from edgecs.server.http.error_forms import anthropic_error
from edgecs.server.http.replies import Framing, event_stream, named_event, unless_gone
from edgecs.server.models.engine import Engine
from edgecs.toolcalls.events import Arguments, Begun, Thought

_REASONS: Mapping[Reason, str] = {
    "stop": "end_turn",
    "tool_calls": "tool_use",
    "length": "max_tokens",
    "context": "model_context_window_exceeded",
    "cancelled": "max_tokens",  # it timed out; there is no other reason for that
}
_PING = {"type": "ping"}
_FRAMING = Framing(
    named_event,
    lambda error: named_event(anthropic_error(error)),
    ping=named_event(_PING),
)


async def messages(
    engine: Engine, request: Request, asked: MessagesRequest, seconds: float
) -> Response:
    """POST /v1/messages. seconds: time limit of an answer."""
    chat, beginning = as_chat(asked)
    answers = await chat_answers(engine, chat, seconds, beginning=beginning)
    form = _Form(asked, answers)
    if asked.stream:
        return event_stream(form.events(), answers.cancel, _FRAMING)
    return JSONResponse(await unless_gone(request, form.whole()))


async def count_tokens(
    engine: Engine, request: Request, asked: CountRequest, seconds: float
) -> Response:
    """POST /v1/messages/count_tokens."""
    prompt = await asyncio.to_thread(prompt_of, engine, *as_chat(asked))
    return JSONResponse({"input_tokens": int(prompt.size)})


class _Form:
    """An answer as a message."""

    def __init__(self, asked: MessagesRequest, answers: Answers) -> None:
        self._answers, self._id = answers, f"msg_{secrets.token_hex(12)}"
        self._model = asked.model
        self._omits = asked.thinking is not None and asked.thinking.display == "omitted"

    async def whole(self) -> dict[str, Any]:
        """A whole message."""
        (choice,) = await self._answers.whole()
        content = list[dict[str, Any]]()
        if choice.thought:
            thought = "" if self._omits else choice.thought
            content.append({**_OPENED["thinking"], "thinking": thought})
        if choice.text:
            content.append({**_OPENED["text"], "text": choice.text})
        for call in choice.calls:
            content.append({**_tool_use(call), "input": json.loads(call.arguments)})
        usage = self._usage(choice)
        return {**self._head(), "content": content, **_ending(choice), "usage": usage}

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a message in their order."""
        usage = self._usage(None)
        message = {**self._head(), "content": [], **_ending(None), "usage": usage}
        yield {"type": "message_start", "message": message}
        blocks = _Blocks(self._omits)
        async with aclosing(self._answers.parts()) as parts:
            async for part in parts:
                for event in blocks.of(part):
                    yield event
                choice = part.choice
        for event in blocks.close():
            yield event
        usage = self._usage(choice)
        yield {"type": "message_delta", "delta": _ending(choice), "usage": usage}
        yield {"type": "message_stop"}

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
        }

    def _usage(self, choice: Choice | None) -> dict[str, Any]:
        """The counts; prompt tokens that were found in the cache are apart."""
        usage = Usage.of([choice] if choice else [])
        return {
            "input_tokens": int(self._answers.prompt.size) - usage.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached,
            "output_tokens": usage.answer,
            "output_tokens_details": {"thinking_tokens": usage.thoughts},
        }


class _Blocks:
    """The blocks of a stream, one after the other. omits: thoughts are not shown."""

    def __init__(self, omits: bool) -> None:
        self._omits, self._index, self._kind = omits, -1, ""

    def of(self, part: Part) -> list[dict[str, Any]]:
        """The events of what is new."""
        events = list[dict[str, Any]]()
        for piece in part.pieces:
            if isinstance(piece, Called):
                events += self._call(piece)
            elif isinstance(piece, Thought):
                events += self._open("thinking", _OPENED["thinking"])
                if not self._omits:
                    delta = {"type": "thinking_delta", "thinking": piece.text}
                    events.append(self._delta(delta))
            else:
                events += self._open("text", _OPENED["text"])
                delta = {"type": "text_delta", "text": piece.text}
                events.append(self._delta(delta))
        return events

    def _call(self, piece: Called) -> list[dict[str, Any]]:
        call, event = piece
        if isinstance(event, Begun):
            return self._open(call.id, _tool_use(call))
        if isinstance(event, Arguments):
            delta = {"type": "input_json_delta", "partial_json": event.text}
            return [self._delta(delta)]
        return self.close()

    def close(self) -> list[dict[str, Any]]:
        """The events that end the current block, if any."""
        if not self._kind:
            return []
        events = list[dict[str, Any]]()
        if self._kind == "thinking":
            events.append(self._delta({"type": "signature_delta", "signature": ""}))
        self._kind = ""
        return [*events, {"type": "content_block_stop", "index": self._index}]

    def _open(self, kind: str, block: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The events before a block, unless it is the current one.

        kind: its type, or the id of its call.
        """
        if kind == self._kind:
            return []
        events = self.close()
        self._kind, self._index = kind, self._index + 1
        start = {"type": "content_block_start", "index": self._index}
        events.append({**start, "content_block": block})
        return events if self._index else [*events, _PING]

    def _delta(self, delta: Mapping[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


_OPENED: Mapping[str, dict[str, Any]] = {
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
    "text": {"type": "text", "text": ""},
}


def _tool_use(call: Call) -> dict[str, Any]:
    """The block of a call, without its arguments."""
    return {
        "type": "tool_use",
        "id": f"toolu_{call.id}",
        "name": call.name,
        "input": {},
    }


def _ending(choice: Choice | None) -> dict[str, Any]:
    """Why an answer ended; None: it has not begun."""
    if choice is None or choice.ended is None or choice.reason is None:
        return {"stop_reason": None, "stop_sequence": None}
    stop = choice.ended.stop
    reason = "stop_sequence" if stop is not None else _REASONS[choice.reason]
    return {"stop_reason": reason, "stop_sequence": stop, **incomplete_calls(choice)}


ENDPOINTS = (
    Endpoint(
        "/v1/messages",
        messages,
        MessagesRequest,
        "Answer messages (Anthropic).",
        "A message, or with `stream` its events as server-sent events.",
    ),
    Endpoint(
        "/v1/messages/count_tokens",
        count_tokens,
        CountRequest,
        "Count the tokens of messages (Anthropic).",
        "The number of tokens.",
    ),
)
