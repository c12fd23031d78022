"""The answers to one request, independent of the API that it used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from pydantic import ValidationError

from edgecs.core.context import Tokens
from edgecs.errors import ConfigError, EdgecsError
from edgecs.server.answers.choice import Choice, Part
from edgecs.server.answers.request_jobs import (
    Constraint,
    grammar_of,
    is_constrained,
    jobs_of,
)
from edgecs.server.answers.requested_tools import told, tool_use
from edgecs.server.answers.schemas import ChatRequest
from edgecs.server.batching.job import Event, Job
from edgecs.server.http.replies import refusal, refused_body
from edgecs.server.models.engine import Engine, SubmittedJob
from edgecs.text.thoughts import THINK
from edgecs.toolcalls.use import ToolUse


class Answers:
    """The answers to one request, one for each job.

    thinks: whether they begin inside a thought; None: thoughts are not separated from
    the text. tools: those that they may call. Raises Busy.
    """

    def __init__(
        self,
        engine: Engine,
        jobs: Sequence[Job],
        thinks: bool | None = None,
        tools: ToolUse | None = None,
    ) -> None:
        self.prompt = jobs[0].prompt
        self.choices = [
            Choice(
                i,
                None if thinks is None else engine.form.separator(tools, open=thinks),
                tools.parser() if tools else None,
            )
            for i in range(len(jobs))
        ]
        self._started: list[SubmittedJob] = []
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

    def cancel_one(self, choice: Choice) -> None:
        """End one of the answers within a round; may be called repeatedly."""
        self._started[choice.index].ticket.cancel()

    async def whole(self) -> list[Choice]:
        """All answers, complete. Raises Refused."""
        async with aclosing(self.parts()) as parts:
            async for _ in parts:
                pass
        return self.choices

    async def parts(self) -> AsyncGenerator[Part, None]:
        """The news of all answers in the order of their arrival. Raises Refused."""
        queue: asyncio.Queue[tuple[Choice, Event]] = asyncio.Queue(maxsize=64)

        async def follow(choice: Choice, one: SubmittedJob) -> None:
            async with aclosing(one.events()) as events:
                async for event in events:
                    await queue.put((choice, event))

        pairs = zip(self.choices, self._started, strict=True)
        tasks = [asyncio.ensure_future(follow(*pair)) for pair in pairs]
        try:
            while any(choice.ended is None for choice in self.choices):
                choice, event = await queue.get()
                if isinstance(event, EdgecsError):
                    raise refusal(event)
                if choice.parser is not None and choice.parser.compiles:
                    yield await asyncio.to_thread(choice.add, event)
                else:
                    yield choice.add(event)
        finally:
            self.cancel()
            for task in tasks:
                task.cancel()


class Usage(NamedTuple):
    """Token counts of a request."""

    prompt: int
    cached: int  # prompt tokens whose KV cells were kept
    answer: int
    thoughts: int  # of the answer
    accepted: int  # draft tokens
    rejected: int

    @classmethod
    def of(cls, choices: Sequence[Choice]) -> Usage:
        """The counts of some answers; those that have not ended count as empty."""
        stats = [choice.ended.stats for choice in choices if choice.ended]
        accepted = sum(one.accepted for one in stats)
        return cls(
            max((one.prompt_tokens for one in stats), default=0),
            max((one.cached_tokens for one in stats), default=0),
            sum(one.tokens for one in stats),
            sum(choice.thought_tokens for choice in choices),
            accepted,
            sum(one.tested for one in stats) - accepted,
        )


def incomplete_calls(choice: Choice) -> dict[str, int]:
    """How many calls were cut off or malformed, if any."""
    return {"incomplete_tool_calls": choice.incomplete} if choice.incomplete else {}


def chat_request(fields: Mapping[str, Any]) -> ChatRequest:
    """The chat request that a request of another API amounts to. Raises Refused."""
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise refused_body(error) from None


async def chat_answers(
    engine: Engine, asked: ChatRequest, seconds: float, *, beginning: str = ""
) -> Answers:
    """The answers to a conversation. Raises EdgecsError.

    seconds: time limit of an answer. beginning: text with which every answer begins;
    it is part of the prompt and not of the answers.
    """
    tools = tool_use(engine.family, asked)
    prompt = await asyncio.to_thread(chat_prompt, engine, asked, beginning)
    return await prompt_answers(engine, asked, prompt, seconds, tools=tools)


async def prompt_answers(
    engine: Engine,
    asked: ChatRequest,
    prompt: Tokens,
    seconds: float,
    *,
    separated: bool = True,
    tools: ToolUse | None = None,
) -> Answers:
    """The answers to a prompt, with the settings of a chat request.

    separated: whether thoughts are separated from the text. tools: those that may be
    called. Raises EdgecsError.
    """
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    form = engine.form
    thinks = form.opened_by(prompt, engine.vocabulary) if separated else None
    shown = form.shown(engine.vocabulary) if separated else None
    limits = Constraint(None, shown)
    if tools is not None or is_constrained(asked, asked.response_format):
        limits = await engine.checks.run(_constraint, engine, asked, tools, thinks)
    jobs = await jobs_of(engine, asked, prompt, logprobs, limits, seconds)
    return Answers(engine, jobs, thinks, tools)


def _constraint(
    engine: Engine, asked: ChatRequest, tools: ToolUse | None, thinks: bool | None
) -> Constraint:
    """What constrains the answers. Raises ConfigError."""
    grammar, form = grammar_of(asked, asked.response_format), engine.form
    if tools is None:
        shown = None if thinks is None else form.shown(engine.vocabulary)
        return Constraint(grammar, shown)
    if grammar is not None:
        raise ConfigError(
            "tools cannot be combined with a response format or a grammar: leave one "
            'of them out, or use tool_choice "none"'
        )
    thinks, tags = (thinks, form.tags) if form.tags else (None, THINK)
    calls, shown = tools.grammar(engine.vocabulary, thinks=thinks, tags=tags)
    return Constraint(calls, {**form.shown(engine.vocabulary), **shown})


def chat_prompt(engine: Engine, asked: ChatRequest, beginning: str = "") -> Tokens:
    """The ids of a conversation, see `chat_answers`. Raises EdgecsError."""
    family = engine.family
    messages, tools = told(family, asked.messages, tool_use(family, asked))
    return engine.encode_chat(
        messages,
        beginning,
        thinking=asked.thinking,
        effort=engine.form.effort(asked.effort),
        tools=tools,
    )
