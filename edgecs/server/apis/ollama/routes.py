"""Ollama's API: chats and generations."""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgecs.core.context import Tokens
from edgecs.server.answers.answering import (
    Answers,
    chat_answers,
    incomplete_calls,
    prompt_answers,
)
from edgecs.server.answers.choice import Call, Called, Choice, Part, Reason
from edgecs.server.answers.schemas import ChatRequest as Chat
from edgecs.server.apis.endpoint import Endpoint
from edgecs.server.apis.ollama.input import chat_of, generation_of
from edgecs.server.apis.ollama.schemas import ChatRequest, GenerateRequest
from edgecs.server.apis.token_names import stated
from edgecs.server.http.error_forms import ollama_error
from edgecs.server.http.replies import Framing, event_stream, unless_gone
from edgecs.server.models.engine import Engine
from edgecs.server.models.pool import ModelPool
from edgecs.session.answer import Token
from edgecs.toolcalls.events import Finished

_REASONS: Mapping[Reason, str] = {
    "stop": "stop",
    "tool_calls": "stop",
    "length": "length",
    "context": "length",
    "cancelled": "length",  # it timed out; there is no other reason for that
}


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


FRAMING = Framing(
    _line,
    lambda error: _line(ollama_error(error)),
    ping=None,
    media_type="application/x-ndjson",
)


async def chat(
    engine: Engine, request: Request, asked: ChatRequest, seconds: float
) -> Response:
    """POST /api/chat. seconds: time limit of an answer."""
    if asked.is_empty:
        return _only_loaded(asked)
    wanted, beginning = chat_of(engine, asked)
    answers = await chat_answers(engine, wanted, seconds, beginning=beginning)
    return await _respond(request, asked, answers, _Chat(engine, asked, answers))


async def generate(
    engine: Engine, request: Request, asked: GenerateRequest, seconds: float
) -> Response:
    """POST /api/generate. seconds: time limit of an answer."""
    if asked.is_empty:
        return _only_loaded(asked)
    wanted = generation_of(engine, asked)
    if asked.raw or asked.context:
        prompt = await asyncio.to_thread(_prompt, engine, asked, wanted)
        answers = await prompt_answers(
            engine, wanted, prompt, seconds, separated=not asked.raw
        )
    else:
        answers = await chat_answers(engine, wanted, seconds)
    return await _respond(request, asked, answers, _Generation(engine, asked, answers))


def _prompt(engine: Engine, asked: GenerateRequest, wanted: Chat) -> Tokens:
    """The ids of a prompt that no template begins."""
    before = asked.context or []
    engine.check_ids(before)
    if asked.raw:
        text = asked.prompt
    else:
        text = engine.render([message.plain() for message in wanted.messages])
    ids = engine.encode(text, document=not before)
    return np.concatenate([np.array(before, dtype=np.int32), ids])


async def _respond(
    request: Request,
    asked: ChatRequest | GenerateRequest,
    answers: Answers,
    form: _Form,
) -> Response:
    if asked.streams:
        return event_stream(form.lines(), answers.cancel, FRAMING)
    return JSONResponse(await unless_gone(request, form.whole()))


def _only_loaded(asked: ChatRequest | GenerateRequest) -> Response:
    """The response to a request without a prompt, which only (un)loads the model."""
    form = _Chat if isinstance(asked, ChatRequest) else _Generation
    reason = "unload" if asked.unloads else "load"
    head = {"model": asked.model, "created_at": now()}
    return JSONResponse({**head, **form.nothing, "done": True, "done_reason": reason})


async def unloaded(
    pool: ModelPool, asked: ChatRequest | GenerateRequest
) -> Response | None:
    """The response to a request that only unloads a model that is not in memory.

    None: it is another request. Raises UnknownModel.
    """
    if not asked.is_empty:
        return None
    name = pool.default if pool.only_default else None
    name = name or (await asyncio.to_thread(pool.models.find, asked.model)).name
    there = {one.name for one in pool.residents() if one.state != "unloading"}
    return None if name in there else _only_loaded(asked)


def now() -> str:
    """The time in Ollama's form."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class _Form(ABC):
    """What the lines of chats and generations have in common."""

    nothing: Mapping[str, Any]  # an empty text

    def __init__(
        self, engine: Engine, asked: ChatRequest | GenerateRequest, answers: Answers
    ) -> None:
        self._engine, self._asked, self._answers = engine, asked, answers
        self._began = time.perf_counter()

    async def whole(self) -> dict[str, Any]:
        """A whole answer."""
        (choice,) = await self._answers.whole()
        said = self._said(choice.thought, choice.text, choice.calls)
        return {**self._head(), **said, **self._stated(choice.tokens), **self._end()}

    async def lines(self) -> AsyncGenerator[dict[str, Any], None]:
        """A line for each round, and one with the counts."""
        async with aclosing(self._answers.parts()) as parts:
            async for part in parts:
                found = self._stated(part.tokens)
                calls = _finished(part)
                if part.thought or part.text or found or calls:
                    said = self._said(part.thought, part.text, calls)
                    yield {**self._head(), **said, **found, "done": False}
        yield {**self._head(), **self.nothing, **self._end()}

    @abstractmethod
    def _said(self, thought: str, text: str, calls: Sequence[Call]) -> dict[str, Any]:
        """The fields that have some text, and calls."""

    def _more(self, choice: Choice) -> dict[str, Any]:
        """More fields of the last line."""
        return {}

    def _head(self) -> dict[str, Any]:
        return {"model": self._asked.model, "created_at": now()}

    def _end(self) -> dict[str, Any]:
        (choice,) = self._answers.choices
        assert choice.ended
        stats = choice.ended.stats
        return {
            "done": True,
            "done_reason": _REASONS[choice.reason or "stop"],
            **incomplete_calls(choice),
            **self._more(choice),
            "total_duration": _nanoseconds(time.perf_counter() - self._began),
            "load_duration": 0,
            "prompt_eval_count": stats.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(stats.prompt_seconds),
            "eval_count": stats.tokens,
            "eval_duration": _nanoseconds(stats.decode_seconds),
        }

    def _stated(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """Log-probabilities, if they are wanted."""
        found = [_without_ids(one) for one in stated(self._engine, tokens)]
        return {"logprobs": found} if found else {}


def _finished(part: Part) -> list[Call]:
    """The calls that are complete with this part: Ollama streams whole calls."""
    return [
        piece.call
        for piece in part.pieces
        if isinstance(piece, Called) and isinstance(piece.event, Finished)
    ]


def _call(call: Call) -> dict[str, Any]:
    function = {"index": call.index, "name": call.name}
    arguments = json.loads(call.arguments)
    return {"id": f"call_{call.id}", "function": {**function, "arguments": arguments}}


def _without_ids(one: dict[str, Any]) -> dict[str, Any]:
    """A log-probability in Ollama's form, which has no ids."""
    kept = {name: value for name, value in one.items() if name != "id"}
    if "top_logprobs" in kept:
        kept["top_logprobs"] = [*map(_without_ids, kept["top_logprobs"])]
    return kept


class _Chat(_Form):
    """Chats."""

    nothing: Mapping[str, Any] = {"message": {"role": "assistant", "content": ""}}

    def _said(self, thought: str, text: str, calls: Sequence[Call]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thought:
            message["thinking"] = thought
        if calls:
            message["tool_calls"] = [*map(_call, calls)]
        return {"message": message}


class _Generation(_Form):
    """Generations; the last line has the tokens of the conversation."""

    nothing: Mapping[str, Any] = {"response": ""}

    def _said(self, thought: str, text: str, calls: Sequence[Call]) -> dict[str, Any]:
        return {"response": text, **({"thinking": thought} if thought else {})}

    def _more(self, choice: Choice) -> dict[str, Any]:
        assert isinstance(self._asked, GenerateRequest)
        if self._asked.raw:
            return {}
        answer = [token.id for token in choice.tokens]
        return {"context": [*self._answers.prompt.tolist(), *answer]}


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


ENDPOINTS = (
    Endpoint(
        "/api/chat",
        chat,
        ChatRequest,
        "Answer a conversation (Ollama).",
        "An answer, or unless `stream` is false its parts, one JSON value a line.",
        unload=unloaded,
    ),
    Endpoint(
        "/api/generate",
        generate,
        GenerateRequest,
        "Continue a prompt (Ollama).",
        "An answer, or unless `stream` is false its parts, one JSON value a line.",
        unload=unloaded,
    ),
)
