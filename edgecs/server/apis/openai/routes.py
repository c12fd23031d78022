"""OpenAI's API: chat completions and completions."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgecs.server.answers.answering import (
    Answers,
    Usage,
    chat_answers,
    incomplete_calls,
)
from edgecs.server.answers.choice import Choice, Part, Reason, drafts_in_calls
from edgecs.server.answers.request_jobs import (
    Constraint,
    grammar_of,
    is_constrained,
    jobs_of,
)
from edgecs.server.answers.schemas import ChatRequest, CompletionRequest
from edgecs.server.apis.endpoint import Endpoint, Handler
from edgecs.server.apis.openai.calls import calls_in, message_of
from edgecs.server.apis.token_details import token_detail
from edgecs.server.apis.token_names import named, stated
from edgecs.server.http.error_forms import openai_error
from edgecs.server.http.replies import Framing, event_stream, unless_gone, unnamed_event
from edgecs.server.models.engine import Engine
from edgecs.session.answer import Token

_REASONS: Mapping[Reason | None, str | None] = {
    None: None,
    "stop": "stop",
    "tool_calls": "tool_calls",
    "length": "length",
    "context": "length",
    "cancelled": "length",  # it timed out; OpenAI has no other reason for that
}
_FRAMING = Framing(
    unnamed_event,
    lambda error: unnamed_event(openai_error(error)),
    end=b"data: [DONE]\n\n",
)


async def chat(
    engine: Engine, request: Request, asked: ChatRequest, seconds: float
) -> Response:
    """POST /v1/chat/completions. seconds: time limit of an answer."""
    answers = await chat_answers(engine, asked, seconds)
    form = _ChatForm(engine, asked, answers)
    if asked.stream:
        return event_stream(form.chunks(), answers.cancel, _FRAMING)
    return JSONResponse(await unless_gone(request, form.whole()))


async def complete(
    engine: Engine, request: Request, asked: CompletionRequest, seconds: float
) -> Response:
    """POST /v1/completions."""
    if isinstance(asked.prompt, str):
        prompt = await asyncio.to_thread(engine.encode, asked.prompt)
    else:
        engine.check_ids(asked.prompt)
        prompt = np.array(asked.prompt, dtype=np.int32)
    limits = Constraint(None)
    if is_constrained(asked, None):
        limits = Constraint(await engine.checks.run(grammar_of, asked, None))
    jobs = await jobs_of(engine, asked, prompt, asked.logprobs, limits, seconds)
    answers = Answers(engine, jobs)
    echo = engine.decode(prompt.tolist()) if asked.echo else ""
    form = _TextForm(engine, asked, answers, echo)
    if asked.stream:
        return event_stream(form.chunks(), answers.cancel, _FRAMING)
    return JSONResponse(await unless_gone(request, form.whole()))


class _Form:
    """What both forms of answers have in common."""

    prefix: str

    def __init__(
        self, engine: Engine, asked: ChatRequest | CompletionRequest, answers: Answers
    ) -> None:
        self._engine, self._stream_options = engine, asked.stream_options
        self._answers = answers
        self._name, self._created = secrets.token_hex(12), int(time.time())
        self._model = asked.model or engine.name
        self._with_details = asked.token_details

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}-{self._name}",
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._engine.fingerprint,
        }

    def _usage_chunk(self, head: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The last chunk, if it was asked for."""
        options = self._stream_options
        if options is None or not options.include_usage:
            return []
        return [{**head, "choices": [], "usage": _usage(self._answers.choices)}]

    def _logprobs(self, tokens: Sequence[Token]) -> list[dict[str, Any]]:
        """Log-probabilities of tokens, in the form of chat completions."""
        return stated(self._engine, tokens)

    def _detailed(self, tokens: Sequence[Token]) -> dict[str, Any]:
        if not self._with_details:
            return {}
        names = partial(named, self._engine)
        return {"token_details": [token_detail(one, names) for one in tokens]}

    def _measured(self, choice: Choice) -> dict[str, Any]:
        """Times and counts of an answer that has ended."""
        ended = choice.ended
        if ended is None:
            return {}
        stats, weights = ended.stats, self._engine.runtime.parameters()
        speculative = stats.speculative(ended.chain, ended.why_plain, weights)
        if inside := drafts_in_calls(choice, stats):
            speculative["in_tool_calls"] = inside
        return {"timings": stats.timings(), "speculative": speculative}


class _ChatForm(_Form):
    """Chat completions."""

    prefix = "chatcmpl"

    def __init__(self, engine: Engine, asked: ChatRequest, answers: Answers) -> None:
        super().__init__(engine, asked, answers)
        self._with_logprobs = bool(asked.logprobs)

    async def whole(self) -> dict[str, Any]:
        """A whole chat completion."""
        choices = await self._answers.whole()
        return {
            **self._head("chat.completion"),
            "choices": [
                {
                    "index": choice.index,
                    "message": message_of(choice),
                    "logprobs": self._stated(choice.tokens),
                    "finish_reason": _REASONS[choice.reason],
                    **incomplete_calls(choice),
                    **self._detailed(choice.tokens),
                }
                for choice in choices
            ],
            "usage": _usage(choices),
            **self._measured(choices[0]),
        }

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """A chat completion in chunks, one per round."""
        head = self._head("chat.completion.chunk")
        begun: set[int] = set()
        async with aclosing(self._answers.parts()) as parts:
            async for part in parts:
                choice = part.choice
                if choice.index not in begun:
                    begun.add(choice.index)
                    first = {"role": "assistant", "content": ""}
                    yield {**head, "choices": [_delta(choice, first)]}
                if delta := self._new(part):
                    stated = self._stated(part.tokens)
                    more = self._detailed(part.tokens)
                    yield {**head, "choices": [_delta(choice, delta, stated) | more]}
                if choice.ended:
                    last = _delta(choice, {}) | incomplete_calls(choice)
                    yield {**head, "choices": [last], **self._measured(choice)}
        for usage in self._usage_chunk(head):
            yield usage

    def _new(self, part: Part) -> dict[str, Any]:
        """The delta of a part."""
        delta = dict[str, Any]()
        if part.thought:
            delta["reasoning_content"] = part.thought
        each = self._with_logprobs or self._with_details
        if part.text or (part.tokens and each):
            delta["content"] = part.text
        if calls := calls_in(part):
            delta["tool_calls"] = calls
        return delta

    def _stated(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        return {"content": self._logprobs(tokens), "refusal": None}


class _TextForm(_Form):
    """Completions. echo: text before every answer."""

    prefix = "cmpl"

    def __init__(
        self, engine: Engine, asked: CompletionRequest, answers: Answers, echo: str
    ) -> None:
        super().__init__(engine, asked, answers)
        self._with_logprobs = asked.logprobs is not None
        self._echo = echo
        # For every answer, the characters before its next token.
        self._offsets = [len(echo)] * len(answers.choices)

    async def whole(self) -> dict[str, Any]:
        """A whole completion."""
        choices = await self._answers.whole()
        return {
            **self._head("text_completion"),
            "choices": [
                self._choice(choice, self._echo + choice.text, choice.tokens)
                for choice in choices
            ],
            "usage": _usage(choices),
            **self._measured(choices[0]),
        }

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """A completion in chunks."""
        head = self._head("text_completion")
        each = self._with_logprobs or self._with_details
        begun: set[int] = set()
        async with aclosing(self._answers.parts()) as parts:
            async for part in parts:
                choice, text = part.choice, part.text
                if choice.index not in begun:
                    begun.add(choice.index)
                    text = self._echo + text
                chunk = self._choice(choice, text, part.tokens)
                if choice.ended:
                    yield {**head, "choices": [chunk], **self._measured(choice)}
                elif text or (part.tokens and each):
                    yield {**head, "choices": [chunk]}
        for usage in self._usage_chunk(head):
            yield usage

    def _choice(
        self, choice: Choice, text: str, tokens: Sequence[Token]
    ) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": text,
            "logprobs": self._stated(choice.index, tokens),
            "finish_reason": _REASONS[choice.reason],
            **self._detailed(tokens),
        }

    def _stated(self, index: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        found, offsets = self._logprobs(tokens), []
        for one in found:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(one["token"])
        return {
            "tokens": [one["token"] for one in found],
            "token_logprobs": [one["logprob"] for one in found],
            "top_logprobs": [
                {other["token"]: other["logprob"] for other in one["top_logprobs"]}
                for one in found
            ],
            "text_offset": offsets,
        }


def _usage(choices: Sequence[Choice]) -> dict[str, Any]:
    usage = Usage.of(choices)
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.answer,
        "total_tokens": usage.prompt + usage.answer,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {
            "accepted_prediction_tokens": usage.accepted,
            "rejected_prediction_tokens": usage.rejected,
        },
    }


def _delta(
    choice: Choice,
    delta: Mapping[str, Any],
    logprobs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "index": choice.index,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": None if delta else _REASONS[choice.reason],
    }


def _paths(
    path: str, handler: Handler, body: type[BaseModel], summary: str, answer: str
) -> Iterator[Endpoint]:
    """An endpoint, also without the version in its path, as llama-server has it."""
    for beginning in ("/v1", ""):
        yield Endpoint(f"{beginning}{path}", handler, body, summary, answer)


ENDPOINTS = (
    *_paths(
        "/chat/completions",
        chat,
        ChatRequest,
        "Answer a conversation (OpenAI).",
        "A chat completion, or with `stream` its chunks as server-sent events.",
    ),
    *_paths(
        "/completions",
        complete,
        CompletionRequest,
        "Continue a text (OpenAI).",
        "A completion, or with `stream` its chunks as server-sent events.",
    ),
)
