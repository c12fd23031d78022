"""The answers to one request, independent of the API that it used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import ValidationError

from edgecs.core.context import Tokens
from edgecs.errors import EdgecsError
from edgecs.server.engine import Asked, Engine
from edgecs.server.job import Ended, Event, Job
from edgecs.server.replies import refusal, refused_body
from edgecs.server.request_jobs import grammar_of, jobs_of
from edgecs.server.schemas import ChatRequest
from edgecs.session.answer import FinishReason, Token
from edgecs.text.thoughts import OPENS, Thoughts


@dataclass(eq=False)
class Choice:
    """One of the `n` answers to a request, as far as it is known.

    thoughts: separates thoughts from the answer; None: the text is not separated.
    thought_tokens: those of the block of thoughts, its delimiters included.
    """

    index: int
    thoughts: Thoughts | None = None
    thought: str = ""
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    ended: Ended | None = None
    thought_tokens: int = 0

    @property
    def reason(self) -> FinishReason | None:
        """Why it ended; None: it has not ended."""
        return self.ended.reason if self.ended else None

    def add(self, event: list[Token] | Ended) -> Part:
        """Add an event, and return what is new."""
        if isinstance(event, Ended):
            self.ended, tokens = event, list[Token]()
        else:
            tokens = event
        thought, text = self._separated(tokens)
        self.thought += thought
        self.text += text
        self.tokens += tokens
        return Part(self, thought, text, tokens)

    def _separated(self, tokens: Sequence[Token]) -> tuple[str, str]:
        """The new thoughts and the new text of the answer."""
        if self.thoughts is None:
            return "", "".join(token.text for token in tokens)
        thought, text = "", ""
        for token in tokens:
            was_open = self.thoughts.open
            new = self.thoughts.feed(token.text)
            self.thought_tokens += was_open or self.thoughts.open
            thought, text = thought + new.thought, text + new.answer
        if self.ended:
            rest = self.thoughts.flush()
            thought, text = thought + rest.thought, text + rest.answer
        return thought, text


class Part(NamedTuple):
    """The news of an answer: a round, or its end, when `choice.ended` is set."""

    choice: Choice
    thought: str
    text: str
    tokens: Sequence[Token]


class Answers:
    """The answers to one request, one for each job.

    thinks: whether they begin inside a thought; None: thoughts are not separated from
    the text. Raises Busy.
    """

    def __init__(
        self, engine: Engine, jobs: Sequence[Job], thinks: bool | None = None
    ) -> None:
        self.prompt = jobs[0].prompt
        self.choices = [
            Choice(i, None if thinks is None else Thoughts(open=thinks))
            for i in range(len(jobs))
        ]
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

    async def whole(self) -> list[Choice]:
        """All answers, complete. Raises Refused."""
        async with aclosing(self.parts()) as parts:
            async for _ in parts:
                pass
        return self.choices

    async def parts(self) -> AsyncGenerator[Part, None]:
        """The news of all answers in the order of their arrival. Raises Refused."""
        queue: asyncio.Queue[tuple[Choice, Event]] = asyncio.Queue(maxsize=64)

        async def follow(choice: Choice, one: Asked) -> None:
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
    prompt = await asyncio.to_thread(chat_prompt, engine, asked, beginning)
    return await prompt_answers(engine, asked, prompt, seconds)


async def prompt_answers(
    engine: Engine,
    asked: ChatRequest,
    prompt: Tokens,
    seconds: float,
    *,
    separated: bool = True,
) -> Answers:
    """The answers to a prompt, with the settings of a chat request.

    separated: whether thoughts are separated from the text. Raises EdgecsError.
    """
    ending = "".join(map(engine.spelling, prompt[-8:].tolist()))
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    grammar = await asyncio.to_thread(grammar_of, asked, asked.response_format)
    jobs = await jobs_of(engine, asked, prompt, logprobs, grammar, seconds)
    thinks = ending.rstrip().endswith(OPENS) if separated else None
    return Answers(engine, jobs, thinks)


def chat_prompt(engine: Engine, asked: ChatRequest, beginning: str = "") -> Tokens:
    """The ids of a conversation, see `chat_answers`. Raises EdgecsError."""
    messages = [message.plain() for message in asked.messages]
    options = asked.chat_template_kwargs
    thinking = options.enable_thinking if options else None
    return engine.encode_chat(messages, beginning, thinking=thinking)
