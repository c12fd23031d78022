"""Reading request bodies, errors in OpenAI's form, and server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from edgecs.errors import ConfigError, ContextFull, EdgecsError
from edgecs.runtime.served_models import UnknownModel
from edgecs.server.job import Busy

Body = TypeVar("Body", bound=BaseModel)
T = TypeVar("T")

PING_SECONDS = 15.0  # chosen: interval of keep-alive comments in a stream
BODY_SECONDS = 30.0  # chosen: time limit for receiving a body


class Refused(Exception):
    """A request that gets an error as its response."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        error = {"message": message, "type": kind, "param": param, "code": status}
        self.body = {"error": error}

    def response(self) -> Response:
        """The HTTP response."""
        return JSONResponse(self.body, self.status, headers=self.headers)


def refusal(error: EdgecsError) -> Refused:
    """The response to an error of the library."""
    text = str(error)
    if isinstance(error, Busy):
        return Refused(429, text, "rate_limit_error", headers={"retry-after": "1"})
    if isinstance(error, UnknownModel):
        return Refused(404, text, "not_found_error", param="model")
    if isinstance(error, ContextFull):
        return Refused(400, text, "exceed_context_size_error")
    if isinstance(error, ConfigError):
        return Refused(400, text)
    return Refused(503, text, "unavailable_error")


async def read_body(request: Request, kind: type[Body], most: int) -> Body:
    """The validated JSON body of a request. Raises Refused.

    most: bytes; a body must arrive within BODY_SECONDS.
    """
    data = await body_of(request, most)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        where = f"{place}: " if place else ""
        raise Refused(400, f"{where}{first['msg']}", param=place or None) from None


async def body_of(request: Request, most: int) -> bytes:
    """The body of a request, which is read once. Raises Refused, see `read_body`."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            if not hasattr(request.state, "body"):
                request.state.body = await _read(request, most)
    except TimeoutError:
        text = f"the body did not arrive within {BODY_SECONDS:.0f} s: send it faster"
        raise Refused(408, text) from None
    except ClientDisconnect:
        raise Refused(400, "the body is incomplete: send all of it") from None
    data: bytes = request.state.body
    return data


async def _read(request: Request, most: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise Refused(
                413, f"the body has more than {most} bytes: send a shorter one"
            )
        parts.append(part)
    return b"".join(parts)


class _Events(StreamingResponse):
    """A stream that calls a function at its end, even if it was never read."""

    def __init__(self, lines: AsyncIterator[bytes], over: Callable[[], None]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(lines, media_type="text/event-stream", headers=headers)
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client disconnects."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._over()


def event_stream(
    events: AsyncGenerator[Any, None], over: Callable[[], None]
) -> Response:
    """JSON values as server-sent events, and [DONE].

    over: called when the stream ends or the client disconnects. Comments keep the
    connection alive between events. A `Refused` is sent as the last event.
    """

    async def lines() -> AsyncIterator[bytes]:
        async for event in _with_pings(events):
            if event is None:
                yield b": ping\n\n"
            else:
                yield b"data: " + json.dumps(event).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"

    return _Events(lines(), over)


async def _with_pings(events: AsyncGenerator[Any, None]) -> AsyncIterator[Any]:
    """The events, and None after PING_SECONDS without one."""
    waiting = asyncio.ensure_future(anext(events, _END))
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=PING_SECONDS)
            if not done:
                yield None
                continue
            try:
                event = waiting.result()
            except Refused as error:
                yield error.body
                return
            if event is _END:
                return
            yield event
            waiting = asyncio.ensure_future(anext(events, _END))
    finally:
        waiting.cancel()
        await asyncio.wait({waiting})
        await events.aclose()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client disconnects.

    The body of the request must have been read. Raises Refused if cancelled.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refused(499, "the client has disconnected")
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.wait({task, gone})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


_END = object()
