"""A connection to a server of edgecs.

http.client is used, as it is imported in milliseconds; a connection serves the few
requests of one command, so pools and retries of larger libraries would not be used.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from edgecs.errors import ConfigError, EdgecsError
from edgecs.server.http.local_key import NONCE, PROOF, new_nonce
from edgecs_cli.client.state_file import RunningServer, running_servers

_ANSWERS = 5.0  # seconds in which a server has to prove itself
_LOADS = 600.0  # seconds in which it has to load a model
_READS = 7200.0  # seconds in which it has to send an event, with pings meanwhile
_LONGEST_LINE = 1 << 20  # bytes of an event
_IDLE = 1 << 16  # bytes between two events, such as pings
_LARGEST = 64 << 20  # bytes of a response
_LARGEST_STREAM = 1 << 30
_PART = 1 << 16  # bytes that are received at once
_LOST = (OSError, http.client.HTTPException)


class ServerLost(EdgecsError):
    """The server cannot be reached, or is not one of edgecs."""


class ServerRefused(EdgecsError):
    """The server answered with an error. status: of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Connection:
    """One TCP connection; it is never opened again, so its peer stays the same.

    key: sent with every request except `prove`. Raises ServerLost.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        parts = urlsplit(url)
        kind: type[http.client.HTTPConnection] = http.client.HTTPConnection
        if parts.scheme == "https":
            kind = http.client.HTTPSConnection
        try:
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("it has no http:// or no host")
            self._http = kind(parts.hostname, parts.port, timeout=_ANSWERS)
        except ValueError as error:
            raise ConfigError(f"{url!r:.120} is not a server's URL: {error}") from error
        self.url, self._key, self._base = url, key, parts.path.rstrip("/")
        try:
            self._http.connect()
        except OSError as error:
            raise ServerLost(f"{url} cannot be reached: {error}") from error
        self._http.auto_open = 0
        self._http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def prove(self, server: RunningServer) -> None:
        """Raises ServerLost unless the peer knows the server's key."""
        nonce = new_nonce()
        response = self._send("GET", "/health", None, {NONCE: nonce})
        self._body(response)
        if not server.local_key.proves(nonce, response.headers.get(PROOF, "")):
            raise ServerLost(f"the program at {self.url} is another server")
        self._key = server.key

    def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The JSON of a response. Raises ServerLost, ServerRefused."""
        self._wait_for(_LOADS)
        response = self._send(method, path, body, self._headers())
        return self._checked(response)

    def events(self, path: str, body: Any) -> Generator[dict[str, Any]]:
        """The JSON events of a stream, up to [DONE]. Raises as `call`.

        Closing the generator closes the connection, which ends the answer.
        """
        self._wait_for(_LOADS)
        response = self._send("POST", path, body, self._headers())
        if response.status != 200:
            self._checked(response)
        try:
            yield from self._events(response)
        finally:
            self.close()

    @property
    def is_open(self) -> bool:
        """Whether it can be used, as far as is known here."""
        return self._http.sock is not None

    def abort(self) -> None:
        """Ends what it waits for with ServerLost; may be called in a signal handler."""
        sock = self._http.sock
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it; may be called again."""
        with suppress(OSError):
            self._http.close()

    def _events(self, response: http.client.HTTPResponse) -> Generator[dict[str, Any]]:
        idle, until = 0, time.monotonic() + _READS
        for line in self._lines(response):
            if not line.startswith(b"data: "):
                idle += len(line) + 1
                if idle > _IDLE or time.monotonic() > until:
                    raise ServerLost(f"{self.url} does not answer as edgecs does")
                continue
            if line.strip() == b"data: [DONE]":
                return
            event = _json(line[6:], self.url)
            if "error" in event:
                raise _refused(response.status, event)
            yield event
            idle, until = 0, time.monotonic() + _READS
        raise ServerLost(f"{self.url} ended before its answer did")

    def _lines(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        rest, size = b"", 0
        while data := self._part(response):
            size += len(data)
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _LONGEST_LINE or size > _LARGEST_STREAM:
                raise ServerLost(f"{self.url} sends too much")
            yield from lines

    def _part(self, response: http.client.HTTPResponse, most: int = _PART) -> bytes:
        """What has arrived; empty: the response has ended."""
        try:
            return response.read1(min(most, _PART))
        except _LOST as error:
            raise ServerLost(f"{self.url} was lost: {_why(error)}") from error

    def _wait_for(self, seconds: float) -> None:
        if self._http.sock is None:
            raise ServerLost(f"{self.url} closed the connection")
        self._http.sock.settimeout(seconds)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def _send(
        self, method: str, path: str, body: Any, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        more = {"Content-Type": "application/json"} if data else {}
        try:
            self._http.request(method, self._base + path, data, {**headers, **more})
            return self._http.getresponse()
        except _LOST as error:
            raise ServerLost(f"{self.url} does not answer: {_why(error)}") from error

    def _checked(self, response: http.client.HTTPResponse) -> dict[str, Any]:
        found = _json(self._body(response), self.url)
        if response.status != 200:
            raise _refused(response.status, found)
        return found

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        left = response.length  # None: it says where it ends
        parts, size, until = list[bytes](), 0, time.monotonic() + _LOADS
        while left is None or size < left:
            data = self._part(response, _PART if left is None else left - size)
            if not data:
                break
            parts.append(data)
            size += len(data)
            if size > _LARGEST or time.monotonic() > until:
                raise ServerLost(f"{self.url} sends too much, or too slowly")
        response.close()  # the connection stays
        if left is not None and size < left:
            raise ServerLost(f"{self.url} ended in the middle of an answer")
        return b"".join(parts)


def _why(error: Exception) -> str:
    """An error in a few words; some have no text."""
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended"
    return f"{error!s:.200}" or type(error).__name__


def _json(data: bytes, url: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ServerLost(f"{url} does not answer as edgecs does")
    return found


def _refused(status: int, body: Mapping[str, Any]) -> ServerRefused:
    error = body.get("error")
    text = error.get("message") if isinstance(error, dict) else None
    return ServerRefused(status, f"{text or f'status {status}'!s:.1000}")


def own_servers() -> Iterator[Connection]:
    """Connections to this user's servers on this machine, each proven to be one."""
    for server in running_servers():
        with suppress(ServerLost):
            connection = Connection(server.url)
            try:
                connection.prove(server)
            except ServerLost:
                connection.close()
                raise
            yield connection
