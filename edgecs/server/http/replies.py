"""Reading request bodies, refusals, and streams of events."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from edgecs.errors import ConfigError, ContextFull, EdgecsError
from edgecs.runtime.served_models import UnknownModel
from edgecs.server.batching.job import Busy
from edgecs.server.http.incidents import InternalError, incident
from edgecs.server.http.intake import Intake

# pydantic's names of the alternatives of a field, which clients do not know.
_BRANCH = re.compile(r"(constrained-)?(str|int|bool|float)|[a-z-]+\[.*\]|[A-Z]\w+")

# Numbers of which some are parsed as infinite.
_HUGE = re.compile(rb"\d[eE]\+?\d{3}|\d{300}")

Body = TypeVar("Body", bound=BaseModel)
T = TypeVar("T")

PING_SECONDS = 15.0  # chosen: interval of keep-alive comments in a stream
BODY_SECONDS = 30.0  # chosen: time limit for receiving a body


class Refused(Exception):
    """A request that gets an error as its response; see `error_forms`.

    status: of HTTP. kind: the type of the error for OpenAI's clients. param: the field
    of the request that was wrong.
    """

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
        self.status, self.kind, self.param = status, kind, param
        self.headers = headers or {}


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
    if isinstance(error, InternalError):
        return Refused(500, text, "server_error")
    return Refused(503, text, "unavailable_error")


async def read_body(request: Request, kind: type[Body], most: int) -> Body:
    """The validated JSON body of a request. Raises Refused.

    most: bytes; a body must arrive within BODY_SECONDS.
    """
    data = await body_of(request, most)
    try:
        return kind.model_validate(_json(data))
    except ValidationError as error:
        raise refused_body(error) from None


def _json(data: bytes) -> Any:
    """A JSON value with finite numbers. Raises Refused."""
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise Refused(400, f"Invalid JSON: {error}") from None
    if _HUGE.search(data) and not _is_finite(value):
        raise Refused(400, "Invalid JSON: a number is too large: at most 1.8e308")
    return value


def _is_finite(value: Any) -> bool:
    """Whether no number in a JSON value is infinite; its depth is limited."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return True
    return all(map(_is_finite, value))


def refused_body(error: ValidationError) -> Refused:
    """The response to a body that is not what was expected."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    # Of a field with alternatives the one that fits best says what is wrong.
    same = [one for one in found if one["loc"][:1] == found[0]["loc"][:1]]
    first = max(same, key=lambda one: len(one["loc"]))
    parts = [str(part) for part in first["loc"]]
    place = ".".join(part for part in parts if not _BRANCH.fullmatch(part))
    where = f"{place:.200}: " if place else ""
    return Refused(400, f"{where}{first['msg']:.300}", param=place[:200] or None)


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
    intake: Intake = request.app.state.intake
    async for part in request.stream():
        if not intake.take(request.scope, len(part)):
            text = "the bodies of other requests take all memory for them: retry later"
            raise Refused(503, text, "unavailable_error", headers={"retry-after": "1"})
        size += len(part)
        if size > most:
            raise Refused(
                413, f"the body has more than {most} bytes: send a shorter one"
            )
        parts.append(part)
    return b"".join(parts)


@dataclass(frozen=True)
class Framing:
    """The bytes of a stream.

    event, error: of an event, and of the error that ends a stream. ping: keeps the
    connection alive between events; None: the form has no such line. end: closes a
    complete stream.
    """

    event: Callable[[Any], bytes]
    error: Callable[[Refused], bytes]
    ping: bytes | None = b": ping\n\n"
    end: bytes = b""
    media_type: str = "text/event-stream"


def named_event(event: dict[str, Any]) -> bytes:
    """A server-sent event whose name is the type in its data."""
    return f"event: {event['type']}\n".encode() + unnamed_event(event)


def unnamed_event(event: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(event).encode() + b"\n\n"


class _Stream(StreamingResponse):
    """A stream that calls a function at its end, even if it was never read."""

    def __init__(
        self, lines: AsyncIterator[bytes], over: Callable[[], None], media_type: str
    ) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(lines, media_type=media_type, headers=headers)
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client disconnects."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._over()


def event_stream(
    events: AsyncGenerator[Any, None], over: Callable[[], None], framing: Framing
) -> Response:
    """The response that streams events.

    over: called when the stream ends or the client disconnects. A `Refused`, or a bug
    without its details, is sent as the last event.
    """

    async def lines() -> AsyncIterator[bytes]:
        try:
            async for event in _with_pings(events):
                if event is not None:
                    yield framing.event(event)
                elif framing.ping is not None:
                    yield framing.ping
        except Refused as error:
            yield framing.error(error)
        except Exception as error:  # the response has begun: its status is 200
            yield framing.error(refusal(incident("a stream failed", error)))
        if framing.end:
            yield framing.end

    return _Stream(lines(), over, framing.media_type)


async def _with_pings(events: AsyncGenerator[Any, None]) -> AsyncIterator[Any]:
    """The events, and None after PING_SECONDS without one. Raises Refused."""
    waiting = asyncio.ensure_future(anext(events, _END))
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=PING_SECONDS)
            if not done:
                yield None
                continue
            event = waiting.result()
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
