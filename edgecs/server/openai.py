"""OpenAI's API: chat completions, completions, models."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgecs.errors import EdgecsError
from edgecs.server.engine import Asked, Engine
from edgecs.server.job import Ended, Job
from edgecs.server.replies import event_stream, refusal, unless_gone
from edgecs.server.request_jobs import grammar_of, jobs_of
from edgecs.server.schemas import ChatRequest, CompletionRequest
from edgecs.session.answer import FinishReason, Token
from edgecs.text.thoughts import OPENS, Thoughts

_REASONS: Mapping[FinishReason, str] = {
    "stop": "stop",
    "length": "length",
    "context": "length",
    "cancelled": "length",  # it timed out; OpenAI has no other reason for that
}


async def chat(
    engine: Engine, request: Request, asked: ChatRequest, seconds: float
) -> Response:
    """POST /v1/chat/completions. seconds: time limit of an answer."""
    messages = [message.plain() for message in asked.messages]
    prompt = await asyncio.to_thread(engine.encode_chat, messages)
    ending = "".join(map(engine.spelling, prompt[-8:].tolist()))
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    grammar = await asyncio.to_thread(grammar_of, asked, asked.response_format)
    jobs = await jobs_of(engine, asked, prompt, logprobs, grammar, seconds)
    run = _Run(engine, asked, jobs, f"chatcmpl-{secrets.token_hex(12)}")
    run.thinks = ending.rstrip().endswith(OPENS)
    if asked.stream:
        return event_stream(run.chat_chunks(), run.cancel)
    return JSONResponse(await unless_gone(request, run.chat_whole()))


async def complete(
    engine: Engine, request: Request, asked: CompletionRequest, seconds: float
) -> Response:
    """POST /v1/completions."""
    if isinstance(asked.prompt, str):
        prompt = await asyncio.to_thread(engine.encode, asked.prompt)
    else:
        engine.check_ids(asked.prompt)
        prompt = np.array(asked.prompt, dtype=np.int32)
    grammar = await asyncio.to_thread(grammar_of, asked, None)
    jobs = await jobs_of(engine, asked, prompt, asked.logprobs, grammar, seconds)
    run = _Run(engine, asked, jobs, f"cmpl-{secrets.token_hex(12)}")
    if asked.echo:
        run.echo = engine.decode(prompt.tolist())
    if asked.stream:
        return event_stream(run.text_chunks(), run.cancel)
    return JSONResponse(await unless_gone(request, run.text_whole()))


def models(engine: Engine) -> dict[str, Any]:
    """GET /v1/models."""
    model = engine.loaded.model
    meta = {
        "n_vocab": engine.loaded.target.vocab_size,
        "n_ctx": engine.n_ctx,
        "n_ctx_train": model.trained_ctx,
        "n_params": model.parameters,
        "size": model.size,
    }
    entry = {
        "id": engine.name,
        "object": "model",
        "created": engine.created,
        "owned_by": "edgecs",
        "meta": meta,
    }
    return {"object": "list", "data": [entry]}


class _Choice:
    """One of the `n` answers to a request, as far as it is known."""

    def __init__(self, index: int, thinks: bool, echo: str) -> None:
        self.index, self.echo = index, echo  # what its text begins with
        self.offset = len(echo)  # characters before its next token
        self.thoughts = Thoughts(open=thinks)
        self.thought, self.text = "", ""
        self.logprobs: list[dict[str, Any]] = []
        self.ended: Ended | None = None

    @property
    def reason(self) -> str | None:
        """OpenAI's finish_reason."""
        return _REASONS[self.ended.reason] if self.ended else None


class _Run:
    """The answers to one request."""

    def __init__(
        self,
        engine: Engine,
        asked: ChatRequest | CompletionRequest,
        jobs: Sequence[Job],
        name: str,
    ) -> None:
        self.thinks = False
        self.echo = ""
        self._engine, self._asked = engine, asked
        self._name, self._created = name, int(time.time())
        self._model = asked.model or engine.name
        self._started: list[Asked] = []
        try:
            for job in jobs:
                self._started.append(engine.ask(job))
        except EdgecsError:
            self.cancel()
            raise

    def cancel(self) -> None:
        """End all answers within a round; may be called repeatedly."""
        for one in self._started:
            one.ticket.cancel()

    async def _parts(self) -> AsyncGenerator[tuple[_Choice, list[Token]], None]:
        """New tokens of the answers; an empty list, with `ended` set, at an end."""
        choices = [
            _Choice(i, self.thinks, self.echo) for i in range(len(self._started))
        ]
        queue: asyncio.Queue[tuple[_Choice, list[Token] | Ended | EdgecsError]]
        queue = asyncio.Queue(maxsize=64)

        async def follow(choice: _Choice, one: Asked) -> None:
            async with aclosing(one.events()) as events:
                async for event in events:
                    await queue.put((choice, event))

        pairs = zip(choices, self._started, strict=True)
        tasks = [asyncio.ensure_future(follow(*pair)) for pair in pairs]
        try:
            open_ = len(tasks)
            while open_:
                choice, event = await queue.get()
                if isinstance(event, EdgecsError):
                    raise refusal(event)
                if isinstance(event, Ended):
                    choice.ended, event = event, []
                    open_ -= 1
                yield choice, event
        finally:
            self.cancel()
            for task in tasks:
                task.cancel()

    async def chat_whole(self) -> dict[str, Any]:
        """A whole chat completion."""
        choices = await self._whole()
        return {
            **self._head("chat.completion"),
            "choices": [
                {
                    "index": choice.index,
                    "message": _message(choice),
                    "logprobs": self._chat_logprobs(choice.logprobs),
                    "finish_reason": choice.reason,
                }
                for choice in choices
            ],
            "usage": self._usage(choices),
            **self._measured(choices[0]),
        }

    async def text_whole(self) -> dict[str, Any]:
        """A whole completion."""
        choices = await self._whole()
        return {
            **self._head("text_completion"),
            "choices": [
                {
                    "index": choice.index,
                    "text": choice.echo + choice.text,
                    "logprobs": self._text_logprobs(choice, choice.logprobs),
                    "finish_reason": choice.reason,
                }
                for choice in choices
            ],
            "usage": self._usage(choices),
            **self._measured(choices[0]),
        }

    async def _whole(self) -> list[_Choice]:
        found: dict[int, _Choice] = {}
        is_chat = isinstance(self._asked, ChatRequest)
        async with aclosing(self._parts()) as parts:
            async for choice, tokens in parts:
                found[choice.index] = choice
                choice.logprobs += self._logprobs(tokens)
                text = "".join(token.text for token in tokens)
                if not is_chat:
                    choice.text += text
                    continue
                thoughts = choice.thoughts
                new = thoughts.flush() if choice.ended else thoughts.feed(text)
                choice.thought += new.thought
                choice.text += new.answer
        return [found[i] for i in sorted(found)]

    async def chat_chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """A chat completion in chunks, one per round."""
        done: list[_Choice] = []
        head = self._head("chat.completion.chunk")
        begun: set[int] = set()
        async with aclosing(self._parts()) as parts:
            async for choice, tokens in parts:
                if choice.index not in begun:
                    begun.add(choice.index)
                    first = {"role": "assistant", "content": ""}
                    yield {**head, "choices": [_delta(choice, first)]}
                stated = self._logprobs(tokens)
                text = "".join(token.text for token in tokens)
                thoughts = choice.thoughts
                new = thoughts.flush() if choice.ended else thoughts.feed(text)
                delta = {}
                if new.thought:
                    delta["reasoning_content"] = new.thought
                if new.answer or stated:
                    delta["content"] = new.answer
                if delta:
                    logprobs = self._chat_logprobs(stated)
                    yield {**head, "choices": [_delta(choice, delta, logprobs)]}
                if choice.ended:
                    done.append(choice)
                    last = _delta(choice, {})
                    yield {**head, "choices": [last], **self._measured(choice)}
        if usage := self._usage_chunk(head, done):
            yield usage

    async def text_chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """A completion in chunks."""
        done: list[_Choice] = []
        head = self._head("text_completion")
        async with aclosing(self._parts()) as parts:
            async for choice, tokens in parts:
                text = choice.echo + "".join(token.text for token in tokens)
                choice.echo = ""
                stated = self._text_logprobs(choice, self._logprobs(tokens))
                chunk = {
                    "index": choice.index,
                    "text": text,
                    "logprobs": stated,
                    "finish_reason": choice.reason,
                }
                if choice.ended:
                    done.append(choice)
                    yield {**head, "choices": [chunk], **self._measured(choice)}
                elif text or stated:
                    yield {**head, "choices": [chunk]}
        if usage := self._usage_chunk(head, done):
            yield usage

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._name,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._engine.fingerprint,
        }

    def _usage_chunk(
        self, head: Mapping[str, Any], done: Sequence[_Choice]
    ) -> dict[str, Any] | None:
        options = self._asked.stream_options
        if options is None or not options.include_usage:
            return None
        return {**head, "choices": [], "usage": self._usage(done)}

    def _usage(self, choices: Sequence[_Choice]) -> dict[str, Any]:
        stats = [choice.ended.stats for choice in choices if choice.ended]
        prompt = max((one.prompt_tokens for one in stats), default=0)
        cached = max((one.cached_tokens for one in stats), default=0)
        said = sum(one.tokens for one in stats)
        accepted = sum(one.accepted for one in stats)
        tested = sum(one.tested for one in stats)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": said,
            "total_tokens": prompt + said,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {
                "accepted_prediction_tokens": accepted,
                "rejected_prediction_tokens": tested - accepted,
            },
        }

    def _measured(self, choice: _Choice) -> dict[str, Any]:
        ended = choice.ended
        if ended is None:
            return {}
        stats = ended.stats
        return {
            "timings": stats.timings(),
            "speculative": stats.speculative(ended.chain, ended.why_plain),
        }

    def _logprobs(self, tokens: Sequence[Token]) -> list[dict[str, Any]]:
        """Log-probabilities of tokens, in the form of chat completions."""
        return [
            {
                **self._named(token.id),
                "logprob": token.logprobs.logprob,
                "top_logprobs": [
                    {**self._named(other), "logprob": logprob}
                    for other, logprob in token.logprobs.top
                ],
            }
            for token in tokens
            if token.logprobs is not None
        ]

    def _named(self, token: int) -> dict[str, Any]:
        data = self._engine.piece(token)
        text = data.decode("utf-8", "replace") if data else self._engine.spelling(token)
        return {"id": token, "token": text, "bytes": list(data)}

    def _chat_logprobs(self, stated: list[dict[str, Any]]) -> dict[str, Any] | None:
        asked = self._asked
        wanted = isinstance(asked, ChatRequest) and asked.logprobs
        return {"content": stated, "refusal": None} if wanted else None

    def _text_logprobs(
        self, choice: _Choice, stated: list[dict[str, Any]]
    ) -> dict[str, Any] | None:
        if self._asked.logprobs is None:
            return None
        offsets = []
        for one in stated:
            offsets.append(choice.offset)
            choice.offset += len(one["token"])
        return {
            "tokens": [one["token"] for one in stated],
            "token_logprobs": [one["logprob"] for one in stated],
            "top_logprobs": [
                {other["token"]: other["logprob"] for other in one["top_logprobs"]}
                for one in stated
            ],
            "text_offset": offsets,
        }


def _message(choice: _Choice) -> dict[str, Any]:
    message = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.thought:
        message["reasoning_content"] = choice.thought
    return message


def _delta(
    choice: _Choice,
    delta: Mapping[str, Any],
    logprobs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "index": choice.index,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": choice.reason if not delta else None,
    }
