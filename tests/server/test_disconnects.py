"""A client that closes its connection ends its answer, with every API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from edgecs.server.app import create_app
from edgecs.server.batching.job import Event
from tests.server.scripted import ScriptedEngine, SubmittedJob, serving_of
from tests.server.servers import WAIT

CHAT = [{"role": "user", "content": "hello hello hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": CHAT},
    "/v1/completions": {"prompt": "hello"},
    "/v1/messages": {"messages": CHAT, "model": "tiny", "max_tokens": 480},
    "/v1/responses": {"input": CHAT},
    "/api/chat": {"messages": CHAT, "model": "tiny"},
    "/api/generate": {"prompt": "hello", "model": "tiny"},
}


class Endless(SubmittedJob):
    """An answer that says something and never ends."""

    async def events(self) -> AsyncGenerator[Event, None]:
        try:
            yield self._events[0]
            await asyncio.Event().wait()
        finally:
            self.closed = True


class EndlessEngine(ScriptedEngine):
    """Its answers never end."""

    def ask(self, job: Any) -> Any:
        self.asked = Endless(job, super().ask(job)._events)
        return self.asked


async def leave(path: str, body: dict[str, Any], engine: EndlessEngine) -> bytes:
    """What a client has received that leaves in the middle of an answer."""
    received, begun = b"", asyncio.Event()
    messages = [{"type": "http.request", "body": json.dumps(body).encode()}]
    if not body["stream"]:  # nothing is sent before the end
        begun.set()

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await begun.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal received
        received += message.get("body", b"")
        if b"hello" in received:
            begun.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    app: Any = create_app(serving_of(engine))
    await asyncio.wait_for(app(scope, receive, send), WAIT)
    return received


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", BODIES)
def test_a_connection_that_is_closed_ends_the_answer(path: str, stream: bool):
    engine = EndlessEngine("hello")
    received = asyncio.run(leave(path, {**BODIES[path], "stream": stream}, engine))
    assert received
    assert engine.asked.ticket.cancelled
    assert engine.asked.closed
