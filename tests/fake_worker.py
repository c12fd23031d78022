"""A worker without llama.cpp: it answers requests with bytes that are made up."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from edgecs.engines.workers.addresses import Address
from edgecs.engines.workers.protocol import HEAD, HELLO, MAJOR, SIZE, reply_size


def exactly(sock: socket.socket, size: int) -> bytes:
    """As many bytes; raises ConnectionError at the end of the connection."""
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise ConnectionError
        data += more
    return data


def made_up(command: int, size: int) -> bytes:
    """The data of a reply, never zeros."""
    return bytes((command + i) % 255 + 1 for i in range(size))


class FakeWorker:
    """Serves one connection after the other. It dies after `lives` bytes of replies.

    lives: counted without the greeting; None: it does not die. requests: those that
    came, without greetings.
    """

    def __init__(
        self, lives: int | None = None, version: tuple[int, int] = (MAJOR, 0)
    ) -> None:
        self.lives, self.version = lives, version
        self.requests: list[tuple[int, bytes]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self._listener.getsockname()[:2])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                try:
                    while True:
                        self._serve(client)
                except OSError:
                    pass

    def _serve(self, client: socket.socket) -> None:
        command, size = HEAD.unpack(exactly(client, HEAD.size))
        data = exactly(client, size)
        wanted = reply_size(command, data)
        if command == HELLO:
            reply = bytes([*self.version, 0, 0]) + bytes(24)
            client.sendall(SIZE.pack(len(reply)) + reply)
            return
        self.requests.append((command, data))
        if wanted is None:
            return
        reply = SIZE.pack(wanted) + made_up(command, wanted)
        if self.lives is not None:
            reply, left = reply[: self.lives], self.lives - len(reply)
            self.lives = max(0, left)
            if left < 0:
                client.sendall(reply)
                raise ConnectionError
        client.sendall(reply)


@contextmanager
def fake_worker(
    lives: int | None = None, version: tuple[int, int] = (MAJOR, 0)
) -> Iterator[FakeWorker]:
    """A worker that is closed at the end."""
    worker = FakeWorker(lives, version)
    try:
        yield worker
    finally:
        worker.close()


@contextmanager
def program(answer: bytes) -> Iterator[Address]:
    """Another program: it answers anything with these bytes, and closes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.recv(1 << 16)
                client.sendall(answer)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield Address(*listener.getsockname()[:2])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
