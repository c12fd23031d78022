"""An engine with written answers that come slowly, for tests of the web page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event as Flag
from types import SimpleNamespace
from typing import Any

from edgecs.runtime.served_models import ServedModel
from edgecs.server.app import Serving
from edgecs.server.batching.job import Ended, Event, Job
from edgecs.server.models.pool import ModelPool
from edgecs.server.models.residency import Limits
from edgecs.session.answer import Token
from edgecs.session.details import Detail, Rejected
from edgecs.session.stats import Record, Stats
from tests.server.scripted import ScriptedEngine, Ticket
from tests.server.servers import named, running_server

CHAIN = ["target", "mag", "bigram"]


def usual(text: str) -> Sequence[str]:
    """An answer that says which message it is for."""
    return [*(f"{word} " for word in f"Heard: {text}".split()), "**and** that is all."]


class PageEngine(ScriptedEngine):
    """Answers the last message with the rounds of `script`, `pause` seconds apart.

    Ids count from `first` after a first token 0. Every second token is
    drafted. An answer with drafts is twice as fast.
    """

    def __init__(self) -> None:
        super().__init__()
        self.script: Callable[[str], Sequence[str]] = usual
        self.pause, self.first, self.n_ctx = 0.0, 1, 100_000
        model = SimpleNamespace(
            trained_ctx=512, parameters=1, size=1, vocabulary=None, is_lost=False
        )
        self.loaded = SimpleNamespace(
            target=SimpleNamespace(vocab_size=257),
            model=model,
            options=SimpleNamespace(kernels="none"),
        )
        session = SimpleNamespace(chain=CHAIN, off_reason=None)
        recipe = self.runtime.recipe
        self.runtime = SimpleNamespace(
            recipe=recipe,
            session=session,
            tiers="all",
            exactness=dict,
            parameters=lambda: None,
        )

    def ask(self, job: Job) -> Any:
        self.jobs.append(job)
        text = bytes(job.prompt.astype("uint8")).decode().rpartition("user: ")[2]
        return _SubmittedJob(
            job, self.script(text.rstrip("\n")), self.pause, self.first
        )


class _SubmittedJob:
    """A job and its answer."""

    def __init__(
        self, job: Job, rounds: Sequence[str], pause: float, first: int
    ) -> None:
        self.job, self.ticket = job, Ticket()
        self._rounds, self._pause, self._first = rounds, pause, first

    async def events(self) -> AsyncGenerator[Event, None]:
        stats = Stats(int(self.job.prompt.size), 0, prompt_seconds=0.1)
        for i, text in enumerate(self._rounds):
            if self.ticket.cancelled:
                return
            await asyncio.sleep(self._pause)
            stats.tokens += 1
            token = self._token(i, text)
            if i:
                accepted = (0,) if token.source == "mag" else ()
                stats.records.append(Record(("mag",), ("mag",), accepted))
            yield [token]
        stats.decode_seconds = stats.tokens / (20 if self.job.speculate else 10)
        yield Ended("stop", stats, CHAIN, None)

    def _token(self, i: int, text: str) -> Token:
        drafted = self.job.speculate and i % 2 == 1
        rival = Rejected(65, "mag", 0.125) if i and not drafted else None
        detail = Detail(0.5, i, 2 if i else 1, rival)
        source = "mag" if drafted else "target"
        number = self._first + i - 1 if i else 0
        return Token(number, text, source, detail=detail)


@contextmanager
def served(
    engine: PageEngine, serving: Serving | None = None, names: Sequence[str] = ("tiny",)
) -> Iterator[str]:
    """A server with this engine under some names; its address."""

    @contextmanager
    def load(model: ServedModel, cancel: Flag) -> Iterator[PageEngine]:
        engine.name = model.name
        yield engine

    state = serving or Serving()
    state.pool = ModelPool(
        named(Path(__file__), *names),
        load,
        limits=Limits(keep_alive=None),
        default="tiny" if len(names) == 1 else None,
        only_default=len(names) == 1,
    )
    with running_server(state, names[0]) as address:
        yield address
