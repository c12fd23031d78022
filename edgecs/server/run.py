"""Running the application: the socket, loading, signals, shutdown."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgecs.errors import Cancelled, ConfigError
from edgecs.server.app import Serving, create_app
from edgecs.server.engine import Engine
from edgecs.server.guard import is_loopback

HEADER_SECONDS = 10.0  # chosen: time limit for receiving the head of a request
_CONNECTIONS = 1024  # chosen
_BACKLOG = 128

Loading = Callable[[threading.Event], AbstractContextManager[Engine]]
"""Loads the model; setting the event stops it with Cancelled."""


class _TimedProtocol(H11Protocol):
    """Closes connections that do not send a request in time (slow loris)."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_answering:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        if not self._is_answering:
            self.transport.close()


def listening(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: a free one. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        sock.close()
        code = getattr(error, "errno", None)
        if code == errno.EADDRINUSE:
            why = f"port {port} is in use: end that program, or give another --port"
        elif code == errno.EACCES:
            why = f"port {port} needs privileges: give a --port from 1024 on"
        else:
            why = f"{error}: give another --host or --port"
        raise ConfigError(f"cannot listen on {host}: {why}") from error
    return sock


def check_access(host: str, api_key: str | None) -> None:
    """Raises ConfigError for a server without a key off loopback."""
    if not is_loopback(host) and not api_key:
        raise ConfigError(
            f"other machines can reach the server on {host}: give an --api-key, or "
            "listen on 127.0.0.1"
        )


def serve(
    serving: Serving,
    sock: socket.socket,
    load: Loading,
    *,
    drain: float = 30.0,
    ready: Callable[[Engine], None] = lambda engine: None,
    started: Callable[[uvicorn.Server], None] = lambda server: None,
) -> None:
    """Serves until SIGINT or SIGTERM; a thread loads the model meanwhile.

    drain: seconds for current answers after the signal. ready: called once the
    model is loaded. Raises what `load` raises.
    """
    config = uvicorn.Config(
        create_app(serving),
        http=_TimedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=int(drain),
        server_header=False,
    )
    server, errors = uvicorn.Server(config), list[BaseException]()
    stop, cancel = threading.Event(), threading.Event()
    started(server)

    def loading() -> None:
        try:
            with load(cancel) as engine:
                serving.engine = engine
                ready(engine)
                stop.wait()
        except Cancelled:
            pass  # by a signal
        except BaseException as error:
            errors.append(error)
        finally:
            serving.engine = None
            server.should_exit = True

    loader = threading.Thread(target=loading, name="edgecs-load")
    loader.start()
    try:
        with _terminates():
            server.run(sockets=[sock])
    finally:
        stop.set()
        cancel.set()
        loader.join()
    if errors:
        raise errors[0]


@contextmanager
def _terminates() -> Iterator[None]:
    """Turns SIGTERM, which uvicorn raises again at its end, into SystemExit.

    So models are freed, and what was measured and the prefix cache are saved.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def address(sock: socket.socket) -> str:
    """The URL of a listening socket."""
    found: Any = sock.getsockname()
    host = f"[{found[0]}]" if sock.family == socket.AF_INET6 else found[0]
    return f"http://{host}:{found[1]}"
