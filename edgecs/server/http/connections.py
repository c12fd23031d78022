"""Connections: how many there are, and how long each may keep the server waiting.

A client that opens connections and sends nothing, sends slowly or does not read holds a
socket and memory. Every wait for a client has a time limit, and beyond a number of
connections the ones that have waited longest for their client make room for new ones,
so that others are answered meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgecs.server.http.error_forms import openai_error
from edgecs.server.http.replies import Refused

HEADER_SECONDS = 10.0  # chosen: time limit for receiving the head of a request
UNREAD_SECONDS = (
    60.0  # chosen: time limit for a client that reads nothing of a response
)
MOST = 1024  # chosen: connections at once
BACKLOG = 128  # connections that are accepted in one go
# Some turns of the event loop lie between accepting a socket and closing it again.
_OTHERS = 128 + 5 * BACKLOG  # file descriptors; 128 chosen: for everything else
_FEWEST = 32


def allow_connections() -> None:
    """Let this process open the files for MOST connections, as far as it may."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST + _OTHERS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections() -> int:
    """Connections at once: MOST, or fewer if this process may open fewer files."""
    if sys.platform == "win32":
        return MOST
    import resource

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MOST
    return max(_FEWEST, min(MOST, files - _OTHERS))


class Room:
    """The connections of a server, at most `most` of them.

    open: how many there are, without those that are being closed. waiting: those that
    wait for a request, or for the rest of one, the longest first.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most, self.open = most, 0
        self.waiting: dict[TimedProtocol, None] = {}

    def enter(self, new: TimedProtocol) -> bool:
        """Count a connection; one may have to go. False: there is no room."""
        self.open += 1
        if self.open <= self.most:
            return True
        oldest = next(iter(self.waiting), None)
        if oldest is None:
            return False
        oldest.leave()
        return True


class TimedProtocol(H11Protocol):
    """A connection that ends if its client lets the server wait, or to make room.

    room: of its server, see `limited`.
    """

    room = Room()
    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _counts = False  # in `room`

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, if there is room."""
        super().connection_made(transport)
        self._counts = True
        if self.room.enter(self):
            self._wait()
        else:
            self._refuse()

    def _refuse(self) -> None:
        text = f"the server has {self.room.most} connections: retry later"
        body = json.dumps(openai_error(Refused(503, text, "unavailable_error")))
        self.transport.write(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n"
            "retry-after: 1\r\nconnection: close\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}".encode()
        )
        self._uncount()
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        if not self._counts:  # it is being closed
            return
        super().data_received(data)
        if not self._is_answering:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.conn.their_state is not h11.SEND_BODY:
            self.room.waiting.pop(self, None)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        if self._counts and not self._is_answering:
            self._wait()

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not read."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(UNREAD_SECONDS, self.leave)

    def resume_writing(self) -> None:
        """Go on sending."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def connection_lost(self, exc: Exception | None) -> None:
        """End all waits."""
        self._uncount()
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def leave(self) -> None:
        """End the connection at once; what was not sent is lost."""
        self._uncount()
        self.transport.abort()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _uncount(self) -> None:
        self.room.waiting.pop(self, None)
        self.room.open -= self._counts
        self._counts = False

    def _wait(self) -> None:
        self.room.waiting.pop(self, None)
        self.room.waiting[self] = None
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        if not self._is_answering:
            self.leave()


def limited(most: int) -> type[TimedProtocol]:
    """The protocol for a server with at most this many connections."""
    return type("LimitedProtocol", (TimedProtocol,), {"room": Room(most)})
