"""OpenAI's Responses API. Nothing is stored."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgecs.server.answers.answering import (
    Answers,
    Usage,
    chat_answers,
    incomplete_calls,
)
from edgecs.server.answers.choice import Called, Choice, Part
from edgecs.server.apis.endpoint import Endpoint
from edgecs.server.apis.responses.input import as_chat
from edgecs.server.apis.responses.schemas import ResponsesRequest
from edgecs.server.apis.token_names import stated
from edgecs.server.http.error_forms import openai_error
from edgecs.server.http.replies import (
    Framing,
    Refused,
    event_stream,
    named_event,
    unless_gone,
)
from edgecs.server.models.engine import Engine
from edgecs.session.answer import Token
from edgecs.toolcalls.events import Arguments, Begun, Finished, Thought

_FRAMING = Framing(
    named_event,
    lambda error: named_event({**openai_error(error)["error"], "type": "error"}),
)
_CUT_OFF = ("function_call", "incomplete")
_PREFIXES = {"reasoning": "rs", "message": "msg", "function_call": "fc"}
StreamEvent = dict[str, Any]


async def respond(
    engine: Engine, request: Request, asked: ResponsesRequest, seconds: float
) -> Response:
    """POST /v1/responses. seconds: time limit of an answer."""
    answers = await chat_answers(engine, as_chat(asked), seconds)
    form = _Form(engine, asked, answers)
    if asked.stream:
        return event_stream(form.events(), answers.cancel, _FRAMING)
    return JSONResponse(await unless_gone(request, form.whole()))


@dataclass
class _Item:
    """An item of a response: thoughts, text, or a call, whose text is its arguments."""

    kind: str  # "reasoning", "message" or "function_call"
    index: int
    text: str = ""
    name: str = ""
    call: str = ""  # the id of a call
    tokens: list[Token] = field(default_factory=list)
    status: str = "in_progress"

    def __post_init__(self) -> None:
        self.id = f"{_PREFIXES[self.kind]}_{secrets.token_hex(12)}"


class _Form:
    """An answer as a response."""

    def __init__(
        self, engine: Engine, asked: ResponsesRequest, answers: Answers
    ) -> None:
        self._engine, self._asked, self._answers = engine, asked, answers
        self._id, self._created = f"resp_{secrets.token_hex(12)}", int(time.time())
        self._items = list[_Item]()
        self._silent = list[Token]()  # without text so far: that of the next piece
        self._count = 0  # of events

    async def whole(self) -> dict[str, Any]:
        """A whole response."""
        async with aclosing(self._answers.parts()) as parts:
            async for part in parts:
                for _ in self._new(part):
                    pass
        for _ in self._close(self._final):
            pass
        return self._response()

    async def events(self) -> AsyncGenerator[StreamEvent, None]:
        """The events of a response in their order."""
        for kind in ("created", "in_progress"):
            yield self._whole_event(kind)
        try:
            async with aclosing(self._answers.parts()) as parts:
                async for part in parts:
                    for event in self._new(part):
                        yield event
        except Refused as error:
            yield self._event("response.failed", response=self._failed(error))
            return
        for event in self._close(self._final):
            yield event
        yield self._whole_event(self._final)

    def _new(self, part: Part) -> Iterator[StreamEvent]:
        """The events of what is new."""
        tokens, self._silent = [*self._silent, *part.tokens], []
        if not part.pieces:
            self._silent = tokens
        for piece in part.pieces:
            if isinstance(piece, Called):
                yield from self._called(piece)
            elif isinstance(piece, Thought):
                yield from self._open("reasoning")
                item = self._items[-1]
                item.text += piece.text
                yield self._part_event(item, "reasoning_text.delta", delta=piece.text)
            else:
                yield from self._open("message")
                item = self._items[-1]
                item.text += piece.text
                item.tokens += tokens
                found, tokens = self._logprobs(tokens), []
                yield self._part_event(
                    item, "output_text.delta", delta=piece.text, logprobs=found
                )

    def _called(self, piece: Called) -> Iterator[StreamEvent]:
        call, event = piece
        if isinstance(event, Begun):
            yield from self._close("completed")
            index = len(self._items)
            item = _Item("function_call", index, name=call.name, call=call.id)
            self._items.append(item)
            yield self._item_event(item, "added", self._item(item))
        elif isinstance(event, Arguments):
            item = self._items[-1]
            item.text += event.text
            yield self._call_event(item, "delta", delta=event.text)
        else:
            done = isinstance(event, Finished)
            yield from self._close("completed" if done else "incomplete")

    def _open(self, kind: str) -> Iterator[StreamEvent]:
        """The events before an item, unless it is the current one."""
        last = self._items[-1] if self._items else None
        if last and last.kind == kind and last.status == "in_progress":
            return
        yield from self._close("completed")
        item = _Item(kind, len(self._items))
        self._items.append(item)
        opened = self._item(item, empty=True)
        yield self._item_event(item, "added", opened)
        part = self._part(item)
        yield self._part_event(item, "content_part.added", part=part)

    def _close(self, status: str) -> Iterator[StreamEvent]:
        """The events that end the current item, if any."""
        item = self._items[-1] if self._items else None
        if item is None or item.status != "in_progress":
            return
        item.status = status
        if item.kind == "function_call":
            if status == "completed":
                done = {"arguments": item.text, "name": item.name}
                yield self._call_event(item, "done", **done)
            yield self._item_event(item, "done", self._item(item))
            return
        if item.kind == "reasoning":
            yield self._part_event(item, "reasoning_text.done", text=item.text)
        else:
            found = self._logprobs(item.tokens)
            yield self._part_event(
                item, "output_text.done", text=item.text, logprobs=found
            )
        yield self._part_event(item, "content_part.done", part=self._part(item))
        yield self._item_event(item, "done", self._item(item))

    def _event(self, kind: str, **more: Any) -> StreamEvent:
        event = {"type": kind, "sequence_number": self._count, **more}
        self._count += 1
        return event

    def _whole_event(self, kind: str) -> StreamEvent:
        return self._event(f"response.{kind}", response=self._response())

    def _item_event(self, item: _Item, what: str, shown: StreamEvent) -> StreamEvent:
        kind = f"response.output_item.{what}"
        return self._event(kind, output_index=item.index, item=shown)

    def _part_event(self, item: _Item, kind: str, **more: Any) -> StreamEvent:
        place = {"item_id": item.id, "output_index": item.index, "content_index": 0}
        return self._event(f"response.{kind}", **place, **more)

    def _call_event(self, item: _Item, what: str, **more: Any) -> StreamEvent:
        place = {"item_id": item.id, "output_index": item.index}
        kind = f"response.function_call_arguments.{what}"
        return self._event(kind, **place, **more)

    def _part(self, item: _Item) -> dict[str, Any]:
        if item.kind == "reasoning":
            return {"type": "reasoning_text", "text": item.text}
        return {
            "type": "output_text",
            "text": item.text,
            "annotations": [],
            "logprobs": self._logprobs(item.tokens),
        }

    def _item(self, item: _Item, *, empty: bool = False) -> dict[str, Any]:
        made = {"id": item.id, "type": item.kind, "status": item.status}
        if item.kind == "function_call":
            call = {"call_id": f"call_{item.call}", "name": item.name}
            return {**made, **call, "arguments": item.text}
        content = [] if empty else [self._part(item)]
        if item.kind == "reasoning":
            return {**made, "summary": [], "content": content}
        return {**made, "role": "assistant", "content": content}

    def _logprobs(self, tokens: Sequence[Token]) -> list[dict[str, Any]]:
        if not self._asked.with_logprobs:
            return []
        return stated(self._engine, tokens)

    @property
    def _choice(self) -> Choice:
        return self._answers.choices[0]

    @property
    def _final(self) -> str:
        """The status of a response whose answer has ended."""
        done = self._choice.reason in ("stop", "tool_calls")
        return "completed" if done else "incomplete"

    def _failed(self, error: Refused) -> dict[str, Any]:
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        told = {"code": code, "message": str(error)}
        return {**self._response(), "status": "failed", "error": told}

    def _output(self) -> list[dict[str, Any]]:
        """The items; a stream has announced those of calls that were cut off, too."""
        return [
            self._item(item)
            for item in self._items
            if self._asked.stream or (item.kind, item.status) != _CUT_OFF
        ]

    def _response(self) -> dict[str, Any]:
        """The response as it is now."""
        asked, ended = self._asked, self._choice.ended is not None
        status = self._final if ended else "in_progress"
        why = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": why,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": asked.model or self._engine.name,
            "output": self._output() if ended else [],
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": _reasoning(asked),
            "store": False,
            "temperature": asked.temperature,
            "text": _text(asked),
            "tool_choice": asked.tool_choice or "auto",
            "tools": asked.tools or [],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": _usage(self._choice) if ended else None,
            "user": asked.user,
            **incomplete_calls(self._choice),
        }


def _reasoning(asked: ResponsesRequest) -> dict[str, Any]:
    given = asked.reasoning
    return {
        "effort": given.effort if given else None,
        "summary": given.summary if given else None,
    }


def _text(asked: ResponsesRequest) -> dict[str, Any]:
    if asked.text is None or asked.text.format is None:
        return {"format": {"type": "text"}}
    return {"format": asked.text.format.model_dump(by_alias=True, exclude_none=True)}


def _usage(choice: Choice) -> dict[str, Any]:
    usage = Usage.of([choice])
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {
            "cached_tokens": usage.cached,
            "cache_write_tokens": 0,
        },
        "output_tokens": usage.answer,
        "output_tokens_details": {"reasoning_tokens": usage.thoughts},
        "total_tokens": usage.prompt + usage.answer,
    }


ENDPOINTS = (
    Endpoint(
        "/v1/responses",
        respond,
        ResponsesRequest,
        "Answer a conversation (OpenAI's Responses API).",
        "A response, or with `stream` its events as server-sent events.",
    ),
)
