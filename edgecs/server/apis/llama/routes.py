"""llama-server's own API: /completion and /infill."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgecs.core.context import Tokens
from edgecs.server.answers.answering import Answers
from edgecs.server.answers.choice import Choice, Part
from edgecs.server.answers.request_jobs import (
    Constraint,
    grammar_of,
    is_constrained,
    jobs_of,
)
from edgecs.server.apis.endpoint import Endpoint
from edgecs.server.apis.llama.input import completion_of, infill_of, prompts_of
from edgecs.server.apis.llama.schemas import (
    AnswerFields,
    CompletionRequest,
    InfillRequest,
    StopType,
)
from edgecs.server.apis.token_names import stated
from edgecs.server.batching.job import Job
from edgecs.server.http.error_forms import openai_error
from edgecs.server.http.replies import Framing, event_stream, unless_gone, unnamed_event
from edgecs.server.models.engine import Engine

_FRAMING = Framing(unnamed_event, lambda error: unnamed_event(openai_error(error)))
_SHOWN = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "n_predict")


async def complete(
    engine: Engine, request: Request, asked: CompletionRequest, seconds: float
) -> Response:
    """POST /completion. seconds: time limit of an answer."""
    prompts, several = await asyncio.to_thread(prompts_of, engine, asked)
    return await _respond(engine, request, asked, prompts, seconds, several=several)


async def infill(
    engine: Engine, request: Request, asked: InfillRequest, seconds: float
) -> Response:
    """POST /infill. seconds: time limit of an answer."""
    prompt = await asyncio.to_thread(infill_of, engine, asked)
    return await _respond(engine, request, asked, [prompt], seconds)


async def _respond(
    engine: Engine,
    request: Request,
    asked: AnswerFields,
    prompts: Sequence[Tokens],
    seconds: float,
    *,
    several: bool = False,
) -> Response:
    """The response. several: the answers to a list of prompts are a list."""
    wanted = completion_of(engine, asked)
    limits = Constraint(None)
    if is_constrained(wanted, None):
        limits = Constraint(await engine.checks.run(grammar_of, wanted, None))
    logprobs = asked.n_probs or None
    jobs = list[Job]()
    for prompt in prompts:
        jobs += await jobs_of(engine, wanted, prompt, logprobs, limits, seconds)
    form = _Form(engine, asked, Answers(engine, jobs), jobs)
    if asked.stream:
        return event_stream(form.chunks(), form.answers.cancel, _FRAMING)
    found = await unless_gone(request, form.whole())
    return JSONResponse(found if several else found[0])


class _Form:
    """The answers to a request in llama-server's form."""

    def __init__(
        self,
        engine: Engine,
        asked: AnswerFields,
        answers: Answers,
        jobs: Sequence[Job],
    ) -> None:
        self.answers = answers
        self._engine, self._asked, self._jobs = engine, asked, jobs
        self._hides = asked.n_predict == 0  # the prompt is only read
        self._begun: dict[int, float] = {}  # by answer, when its first token came

    async def whole(self) -> list[dict[str, Any]]:
        """All answers, complete. Raises Refused."""
        async with aclosing(self._parts()) as parts:
            async for _ in parts:
                pass
        return [self._chosen(self._last(one, one.text)) for one in self.answers.choices]

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """A chunk for each round, and one at the end of every answer."""
        async with aclosing(self._parts()) as parts:
            async for part in parts:
                choice = part.choice
                if choice.ended:
                    if part.text and not self._hides:
                        yield self._chunk(part)
                    yield self._chosen(self._last(choice, ""))
                elif part.tokens and not self._hides:
                    yield self._chunk(part)

    async def _parts(self) -> AsyncGenerator[Part, None]:
        """The news of all answers; those whose time is up are ended."""
        limit = self._asked.t_max_predict_ms / 1000
        async with aclosing(self.answers.parts()) as parts:
            async for part in parts:
                yield part
                choice = part.choice
                began = self._begun.setdefault(choice.index, time.monotonic())
                late = limit > 0 and time.monotonic() - began > limit
                if late and "\n" in choice.text:
                    self.answers.cancel_one(choice)

    def _chunk(self, part: Part) -> dict[str, Any]:
        choice = part.choice
        found = {
            "index": choice.index,
            "content": part.text,
            "tokens": [token.id for token in part.tokens],
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": len(choice.tokens),
            "tokens_evaluated": self._jobs[choice.index].prompt.size,
        }
        if self._asked.n_probs:
            found["completion_probabilities"] = stated(self._engine, part.tokens)
        return found

    def _last(self, choice: Choice, text: str) -> dict[str, Any]:
        """A complete answer; in a stream its last chunk, with no text."""
        ended = choice.ended
        assert ended is not None
        stats, asked, tokens = ended.stats, self._asked, choice.tokens
        if self._hides:
            text, tokens = "", []
        streams = asked.stream
        found: dict[str, Any] = {
            "index": choice.index,
            "content": text,
            "tokens": (
                [one.id for one in tokens]
                if asked.return_tokens and not streams
                else []
            ),
            "id_slot": -1,
            "stop": True,
            "model": asked.model or self._engine.name,
            "tokens_predicted": len(tokens),
            "tokens_evaluated": stats.prompt_tokens,
            "generation_settings": self._settings(),
            "prompt": self._engine.decode(self._jobs[choice.index].prompt.tolist()),
            "has_new_line": "\n" in choice.text and not self._hides,
            "truncated": ended.reason == "context",
            "stop_type": self._stop_type(choice),
            "stopping_word": ended.stop or "",
            "tokens_cached": stats.cached_tokens,
            "timings": stats.timings(),
        }
        if asked.n_probs and not streams:
            found["completion_probabilities"] = stated(self._engine, tokens)
        return found

    def _stop_type(self, choice: Choice) -> StopType:
        ended = choice.ended
        assert ended is not None
        if self._hides or ended.reason != "stop":
            return "limit"
        return "word" if ended.stop else "eos"

    def _settings(self) -> dict[str, Any]:
        """The settings of the request, as far as it has them."""
        asked = self._asked
        given = {name: getattr(asked, name) for name in _SHOWN}
        return {
            "n_ctx": self._engine.n_ctx,
            **{name: value for name, value in given.items() if value is not None},
            "stream": asked.stream,
            "n_probs": asked.n_probs,
            "t_max_predict_ms": asked.t_max_predict_ms,
        }

    def _chosen(self, found: dict[str, Any]) -> dict[str, Any]:
        """The fields that were asked for; "a/b" is b in a. Others are left out."""
        if not self._asked.response_fields:
            return found
        chosen = {name: _at(found, name) for name in self._asked.response_fields}
        return {name: value for name, value in chosen.items() if value is not _MISSING}


_MISSING = object()


def _at(found: Mapping[str, Any], name: str) -> Any:
    value: Any = found
    for key in name.split("/"):
        if not isinstance(value, Mapping) or key not in value:
            return _MISSING
        value = value[key]
    return value


ENDPOINTS = (
    Endpoint(
        "/completion",
        complete,
        CompletionRequest,
        "Continue a text (llama-server).",
        "A completion, or with `stream` its chunks as server-sent events.",
    ),
    Endpoint(
        "/infill",
        infill,
        InfillRequest,
        "Write what is between two texts (llama-server).",
        "A completion, or with `stream` its chunks as server-sent events.",
    ),
)
