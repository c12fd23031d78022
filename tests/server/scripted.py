"""An engine whose answers are written down, for tests of what clients receive."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from starlette.testclient import TestClient

from edgecs.chat.archive import Owner
from edgecs.chat.conversation import Message, Prompt
from edgecs.core.context import Tokens
from edgecs.core.fim_tokens import FimTokens
from edgecs.errors import EdgecsError
from edgecs.runtime.recipe import Recipe
from edgecs.runtime.served_models import ServedModel, ServedModels
from edgecs.sampling.logprobs import Logprobs
from edgecs.sampling.settings import Sampling
from edgecs.server.app import Serving, create_app
from edgecs.server.batching.checks import Checks
from edgecs.server.batching.job import Ended, Event, Job, SlotState, Totals
from edgecs.server.models.engine import Engine
from edgecs.server.models.pool import ModelPool
from edgecs.server.models.residency import Limits, Resident
from edgecs.session.answer import FinishReason, Token
from edgecs.session.stats import Stats
from edgecs.testing.fakes import ByteTokenizer


class Ticket:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class SubmittedJob:
    """A job, and the events of its answer."""

    def __init__(self, job: Job, events: Sequence[Event]) -> None:
        self.job, self.ticket, self._events = job, Ticket(), events

    async def events(self) -> AsyncGenerator[Event, None]:
        for event in self._events:
            yield event


def _model() -> SimpleNamespace:
    return SimpleNamespace(
        trained_ctx=512,
        parameters=1000,
        size=4000,
        metadata={"general.architecture": "llama"},
        file_type="F32",
        path=Path(__file__),
        offload=SimpleNamespace(layers=0, total=3),
        is_lost=False,
    )


class ScriptedEngine(Engine):
    """Says `rounds`, a text for each round, to whatever it is asked.

    error: comes instead of an end. thinks: the prompt opens a block of thoughts.
    template: source of the chat template, from which only the family of the model is
    taken. `jobs` are the jobs so far, `prompts` the conversations with the beginnings
    of answers, `efforts` how long they may think, `tools` those of the last one.
    """

    def __init__(
        self,
        *rounds: str,
        reason: FinishReason = "stop",
        stop: str | None = None,
        error: EdgecsError | None = None,
        thinks: bool = False,
        template: str = 'tools <tool_call> "arguments"',
    ) -> None:
        self.rounds, self.reason, self.stop, self.error = rounds, reason, stop, error
        self.template = template
        self.thinks, self.name, self.created = thinks, "tiny", 1_700_000_000
        self.n_ctx, self.slots = 512, 1
        self.tokenizer = ByteTokenizer()
        self.runtime: Any = SimpleNamespace(
            recipe=Recipe("tiny"),
            session=SimpleNamespace(chain=["target"], off_reason=None),
            tiers=None,
            exactness=dict,
            parameters=lambda: None,
        )
        self.owner = Owner("tiny", "", "", 257)
        self.loaded: Any = SimpleNamespace(
            model=_model(),
            target=SimpleNamespace(vocab_size=257),
            options=SimpleNamespace(kernels="own"),
        )
        self.scheduler: Any = SimpleNamespace(
            totals=Totals(),
            queued=0,
            refused_files=0,
            dropped_files=0,
            slots=lambda: [SlotState(0, "idle", 0, 0, 0)],
        )
        self.fills: FimTokens | None = FimTokens(251, 252, 253, 254, 255)
        self.jobs, self.checks = list[Job](), Checks()
        self.tools: Sequence[Mapping[str, Any]] = ()
        self.efforts = list[str | None]()
        self.prompts = list[tuple[Sequence[Mapping[str, Any]], str, bool | None]]()

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        beginning: str = "",
        *,
        thinking: bool | None = None,
        effort: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Tokens:
        self.tools = tools
        self.efforts.append(effort)
        self.prompts.append((messages, beginning, thinking))
        text = "".join(f"{m['role']}: {m['content']}\n" for m in messages)
        return self.encode(text + ("<think>" if self.thinks else "") + beginning)

    def encode_turns(
        self, messages: Sequence[Message], partial: Sequence[int] = ()
    ) -> Prompt:
        for ids in (partial, *(one.ids or () for one in messages)):
            self.check_ids(ids)
        text = "".join(f"{m.role}: {m.content}\n" for m in messages)
        ids = np.array(partial, dtype=np.int32)
        return Prompt(np.concatenate([self.encode(text), ids]), 0)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        return "".join(f"{m['role']}: {m['content']}\n" for m in messages)

    @property
    def chat_template(self) -> str | None:
        return self.template + ("<think>" if self.thinks else "")

    @property
    def vocabulary(self) -> ByteTokenizer:
        return self.tokenizer

    def encode(self, text: str, *, document: bool = True) -> Tokens:
        data = text.encode("utf-8", "replace")
        return np.frombuffer(data, dtype=np.uint8).astype(np.int32)

    def decode(self, tokens: Sequence[int]) -> str:
        self.check_ids(tokens)
        return b"".join(map(self.piece, tokens)).decode("utf-8", "replace")

    def spelling(self, token: int) -> str:
        return self.tokenizer.spelling(token)

    def piece(self, token: int) -> bytes:
        return self.tokenizer.piece(token)

    def encode_plain(self, text: str) -> Tokens:
        return self.encode(text, document=False)

    @property
    def fim(self) -> FimTokens | None:
        return self.fills

    def rule(self, sampling: Sampling, grammar: object) -> Any:
        return (sampling, grammar)

    @property
    def fingerprint(self) -> str:
        return "scripted"

    def ask(self, job: Job) -> Any:
        self.jobs.append(job)
        events: list[Event] = [[self._token(job, text)] for text in self.rounds]
        if self.error is not None:
            return SubmittedJob(job, [*events, self.error])
        stats = Stats(int(job.prompt.size), 3, len(self.rounds), 0.25, 0.5)
        ended = Ended(self.reason, stats, ["target"], None, self.stop)
        return SubmittedJob(job, [*events, ended])

    def _token(self, job: Job, text: str) -> Token:
        stated = None
        if job.logprobs is not None:
            stated = Logprobs(-0.5, ((65, -0.5), (66, -1.0))[: job.logprobs])
        return Token(65, text, "target", stated)


class OneModel:
    """A `ModelPool` with one model, in memory unless `engine` is None."""

    only_default = True

    def __init__(self, engine: Engine | None) -> None:
        self.engine = engine
        name = engine.name if engine else "tiny"
        self.default, self.limits = name, Limits()
        path = engine.loaded.model.path if engine else None
        self.model = ServedModel(name, name, path)
        self.models = ServedModels({name: self.model})

    @asynccontextmanager
    async def acquire(self, *_: object) -> AsyncIterator[Engine]:
        assert self.engine is not None
        yield self.engine

    peek = acquire

    async def unload(self, name: str, *, cancel: bool = False) -> bool:
        return self.models.find(name) is not None

    def stop_loading(self) -> None:
        pass

    def join(self) -> None:
        pass

    def residents(self) -> list[Resident]:
        if self.engine is None:
            return []
        return [Resident(self.model, "loaded", 0, None, self.engine)]


def serving_of(engine: Engine | None, serving: Serving | None = None) -> Serving:
    """A server with an engine; None: it is loading."""
    serving = serving or Serving()
    serving.pool = cast(ModelPool, OneModel(engine))
    serving.is_starting = engine is None
    return serving


def client(engine: Engine | None, serving: Serving | None = None) -> TestClient:
    """A client of the application, without sockets."""
    app = create_app(serving_of(engine, serving))
    return TestClient(app, "http://localhost", raise_server_exceptions=False)
