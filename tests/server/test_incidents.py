"""A bug is told with an id under which the log has it, and with nothing else."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from edgecs.core.draft import Request, Rows
from edgecs.errors import EdgecsError
from edgecs.runtime.served_models import ServedModel
from edgecs.server.answers.answering import Choice, Part
from edgecs.server.http.incidents import InternalError
from edgecs.server.models.engine import Engine
from tests.server.scripted import ScriptedEngine, client
from tests.server.test_disconnects import BODIES
from tests.server.test_pool import pool_of
from tests.server.test_scheduler import Client, Shared, alone, job, scheduler

SECRET = "/home/someone/secret.gguf"
_ID = re.compile(r"internal error ([0-9a-f]{8}): ")


def bug() -> RuntimeError:
    return RuntimeError(f"what was said in {SECRET}")


def check(said: str, caplog: pytest.LogCaptureFixture) -> None:
    """The sentence tells nothing, and the log has one entry with the traceback."""
    assert SECRET not in said
    assert "RuntimeError" not in said
    found = _ID.search(said)
    assert found, said
    (record,) = [
        one
        for one in caplog.records
        if one.name == "edgecs" and found[1] in one.getMessage()
    ]
    assert record.levelno == logging.ERROR
    assert record.exc_info
    assert SECRET in str(record.exc_info[1])


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [True, False])
def test_a_bug_before_an_answer(path: str, stream: bool, caplog: Any):
    class Broken(ScriptedEngine):
        def ask(self, job: Any) -> Any:
            raise bug()

    with client(Broken()) as made:
        reply = made.post(path, json={**BODIES[path], "stream": stream})
    assert reply.status_code == 500
    check(reply.text, caplog)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [True, False])
def test_a_bug_in_an_answer(path: str, stream: bool, caplog: Any, monkeypatch: Any):
    """A stream that has begun ends with an event about it."""
    add, calls = Choice.add, list[int]()

    def broken(self: Choice, event: Any) -> Part:
        calls.append(1)
        if len(calls) > 1:
            raise bug()
        return add(self, event)

    monkeypatch.setattr(Choice, "add", broken)
    with client(ScriptedEngine("hello", " again")) as made:
        reply = made.post(path, json={**BODIES[path], "stream": stream})
    assert reply.status_code == (200 if stream else 500)
    if stream:
        assert "hello" in reply.text
    check(reply.text, caplog)


def test_a_bug_of_the_target(caplog: Any):
    class Broken(Shared):
        def rows(self, request: Request) -> Rows:
            if len(request.context) > 20:
                raise bug()
            return super().rows(request)

    with scheduler(Broken(2)) as made:
        said = Client(made, job([1], 100)).end()
        assert isinstance(said, InternalError)
        check(str(said), caplog)
        sound = Client(made, job([2], 10))
        sound.end()
        assert sound.tokens == alone([2], 10)


def test_a_bug_while_a_model_is_loaded(caplog: Any):
    @contextmanager
    def load(model: ServedModel, cancel: threading.Event) -> Iterator[Engine]:
        raise bug()
        yield

    async def go() -> str:
        pool = pool_of(load)
        try:
            async with pool.acquire("a"):
                raise AssertionError
        except EdgecsError as error:
            assert pool.residents() == []
            return str(error)

    check(asyncio.run(go()), caplog)
