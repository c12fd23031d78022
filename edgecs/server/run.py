"""Running the application: the socket, loading, signals, shutdown."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from edgecs.errors import Cancelled, ConfigError
from edgecs.server.app import Serving, create_app
from edgecs.server.http.connections import BACKLOG, limited, most_connections
from edgecs.server.http.guard import is_loopback
from edgecs.server.models.pool import ModelPool
from edgecs.server.models.served import Served


def listening(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: a free one. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it the parts of
    # a response wait for the client's delayed acknowledgements, 40 ms each.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
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


class _Server(uvicorn.Server):
    """A server that loads its first model, and tells the pool of its end.

    first: awaited once the server listens.
    """

    def __init__(
        self, config: uvicorn.Config, pool: ModelPool, first: Callable[[], Any]
    ) -> None:
        super().__init__(config)
        self._pool, self._first = pool, first
        self._task: asyncio.Future[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._task = asyncio.ensure_future(self._first())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._pool.stop_loading()
        await super().shutdown(sockets)


def serve(
    serving: Serving,
    sock: socket.socket,
    *,
    first: str | None = None,
    drain: float = 30.0,
    ready: Callable[[Served | None], None] = lambda engine: None,
    started: Callable[[uvicorn.Server], None] = lambda server: None,
) -> None:
    """Serves until SIGINT or SIGTERM; models are loaded meanwhile.

    first: the model that is loaded at the start. drain: seconds for current answers
    after the signal. ready: called once that model is loaded, or the server listens.
    Raises the error of loading the first model.
    """
    pool, errors = serving.pool, list[BaseException]()
    assert pool is not None
    serving.is_starting = first is not None

    async def begin() -> None:
        try:
            if first is None:
                ready(None)
                return
            async with pool.acquire(first) as engine:
                serving.is_starting = False
                ready(engine)
        except Cancelled:
            server.should_exit = True  # by a signal
        except Exception as error:
            errors.append(error)
            server.should_exit = True

    config = uvicorn.Config(
        create_app(serving),
        http=limited(most_connections()),
        backlog=BACKLOG,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(drain),
        server_header=False,
    )
    server = _Server(config, pool, begin)
    started(server)
    try:
        with _terminates():
            server.run(sockets=[sock])
    finally:
        pool.join()
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


def local_address(sock: socket.socket) -> str:
    """The URL of a listening socket for programs on this machine."""
    url = address(sock)
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def address(sock: socket.socket) -> str:
    """The URL of a listening socket."""
    found: Any = sock.getsockname()
    host = f"[{found[0]}]" if sock.family == socket.AF_INET6 else found[0]
    return f"http://{host}:{found[1]}"
