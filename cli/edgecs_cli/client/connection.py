"""A connection to a server of edgecs.

http.client is used, as it is imported in milliseconds; a connection serves the few
requests of one command, so pools and retries of larger libraries would not be used.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from edgecs.errors import ConfigError, EdgecsError
from edgecs.server.local_key import NONCE, PROOF, new_nonce
from edgecs_cli.client.state_file import RunningServer, running_servers

_ANSWERS = 5.0  # seconds in which a server has to prove itself
_LOADS = 600.0  # seconds in which it has to load a model
_LONGEST_LINE = 16 << 20  # bytes of an event
_LARGEST = 64 << 20  # bytes of a response
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

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of a response. Raises ServerLost, ServerRefused."""
        self._wait_for(_LOADS)
        response = self._send(method, path, body, self._headers())
        return self._checked(response)

    def events(self, path: str, body: Any) -> Iterator[Any]:
        """The JSON events of a stream, up to [DONE]. Raises as `call`.

        Closing the iterator closes the connection, which ends the answer.
        """
        self._wait_for(_LOADS)
        response = self._send("POST", path, body, self._headers())
        if response.status != 200:
            self._checked(response)
        try:
            yield from self._events(response)
        finally:
            self.close()

    def close(self) -> None:
        """Close it; may be called again."""
        with suppress(OSError):
            self._http.close()

    def _events(self, response: http.client.HTTPResponse) -> Iterator[Any]:
        while True:
            try:
                line = response.readline(_LONGEST_LINE)
            except _LOST as error:
                raise ServerLost(f"{self.url} was lost: {error!r}") from error
            if not line:
                raise ServerLost(f"{self.url} ended before its answer did")
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                return
            event = _json(line[6:], self.url)
            if "error" in event:
                raise _refused(response.status, event)
            yield event

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
            raise ServerLost(f"{self.url} does not answer: {error!r}") from error

    def _checked(self, response: http.client.HTTPResponse) -> Any:
        found = _json(self._body(response), self.url)
        if response.status != 200:
            raise _refused(response.status, found)
        return found

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        try:
            data = response.read(_LARGEST + 1)
        except _LOST as error:
            raise ServerLost(f"{self.url} was lost: {error!r}") from error
        if len(data) > _LARGEST:
            raise ServerLost(f"{self.url} sends too much")
        return data


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
    return ServerRefused(status, str(text or f"status {status}"))


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
