"""A relay between llama.cpp and a worker, on a port of this process.

llama.cpp aborts the process if a worker cannot be reached, refuses a request or goes
away. It therefore connects to the relay, which does none of these: once the worker is
lost, the relay answers in its place, with zeros, and keeps the reason. The call of
llama.cpp ends as usual, and its caller finds the reason and drops the result.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import psutil

from edgecs.core.reading import reason
from edgecs.engines.workers.addresses import Address
from edgecs.engines.workers.protocol import (
    HEAD,
    HELLO,
    SIZE,
    connect,
    reply_size,
    substitute,
)
from edgecs.errors import WorkerError

_BLOCK = 1 << 20  # bytes that are passed on at once


class Relay:
    """Listens for llama.cpp in this process, and passes its requests to one worker.

    lost: why the worker cannot be used any more; None: nothing is known against it.
    """

    def __init__(self, worker: Address) -> None:
        self.worker = worker
        self.lost: str | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(
            target=self._accept, name="edgecs-relay", daemon=True
        )
        self._thread.start()

    def check(self) -> None:
        """Raises WorkerError if the worker was lost."""
        if self.lost is not None:
            raise WorkerError(self.lost)

    def lose(self, why: str) -> None:
        """Note the first reason why the worker cannot be used."""
        if self.lost is None:
            self.lost = why

    def close(self) -> None:
        """Take no further connections; those of llama.cpp stay."""
        # Closing alone does not end `accept` in another thread.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, peer = self._listener.accept()
            except OSError:  # closed
                return
            if not _is_ours(peer[1]):
                client.close()
                continue
            threading.Thread(
                target=_Connection(self, client).run, name="edgecs-relay", daemon=True
            ).start()


class _Lost(Exception):
    """The worker was lost; the relay has noted why."""


class _Connection:
    """A connection of llama.cpp, and the one to the worker that it stands for."""

    def __init__(self, relay: Relay, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._relay, self._client = relay, client
        self._worker: socket.socket | None = None
        self._buffer = memoryview(bytearray(_BLOCK))

    def run(self) -> None:
        try:
            if self._relay.lost is None:
                try:
                    self._worker = connect(self._relay.worker)
                except WorkerError as error:
                    self._relay.lose(str(error))
            while self._exchange():
                pass
        except OSError:
            pass  # llama.cpp has closed its end
        finally:
            self._client.close()
            self._part()

    def _part(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _exchange(self) -> bool:
        """A request and its reply; False: llama.cpp has closed the connection."""
        head = self._buffer[: HEAD.size]
        if not _fill(self._client, head):
            return False
        command, size = HEAD.unpack(head)
        tail = self._forward(size, says_hello=command == HELLO)
        wanted = reply_size(command, tail)
        if wanted is not None:
            self._reply(command, wanted)
        return True

    def _forward(self, size: int, *, says_hello: bool) -> bytes:
        """Pass a request on, whose head is in the buffer; returns the end of its data.

        The relay has said hello itself.
        """
        ready, tail = HEAD.size, b""
        while True:
            part = self._buffer[ready : ready + min(size, _BLOCK - ready)]
            if not _fill(self._client, part):
                raise ConnectionError
            size -= len(part)
            tail = (tail + bytes(part[-SIZE.size :]))[-SIZE.size :]
            if self._worker is not None and not says_hello:
                try:
                    self._worker.sendall(self._buffer[: ready + len(part)])
                except OSError as error:
                    self._lose(reason(error))
            ready = 0
            if not size:
                return tail

    def _reply(self, command: int, wanted: int) -> None:
        """Pass a reply back, or what remains of it on behalf of a lost worker."""
        sent = 0
        try:
            if self._worker is None or command == HELLO:
                raise _Lost
            if not self._answered(size := self._buffer[: SIZE.size]):
                raise _Lost
            if size != SIZE.pack(wanted):
                self._lose("its answer has a wrong size")
                raise _Lost
            ready = SIZE.size  # the size goes with the first part
            while sent < wanted or ready:
                part = self._buffer[ready : ready + min(wanted - sent, _BLOCK - ready)]
                if not self._answered(part):
                    raise _Lost
                self._client.sendall(self._buffer[: ready + len(part)])
                sent, ready = sent + len(part), 0
        except _Lost:
            whole = substitute(command)[sent:]
            if not sent:
                whole = SIZE.pack(wanted) + whole
            self._client.sendall(whole)
            missing = wanted - max(sent, len(substitute(command)))
            zeros = bytes(min(max(0, missing), _BLOCK))
            while missing > 0:
                self._client.sendall(zeros[:missing])
                missing -= len(zeros)

    def _answered(self, part: memoryview) -> bool:
        """Fill a part of the buffer from the worker; False: the worker is lost."""
        assert self._worker is not None
        try:
            if _fill(self._worker, part):
                return True
            why = "it closed the connection"
        except OSError as error:
            why = reason(error)
        self._lose(why)
        return False

    def _lose(self, why: str) -> None:
        self._relay.lose(
            f"the worker {self._relay.worker} was lost ({why}): start it again, and "
            "then repeat this"
        )
        self._part()


def _fill(sock: socket.socket, part: memoryview) -> bool:
    """Receive as many bytes as a part has; False: the other end was closed before."""
    while part:
        got = sock.recv_into(part)
        if not got:
            return False
        part = part[got:]
    return True


def _is_ours(port: int) -> bool:
    """Whether a connection comes from this process: others may not use the worker."""
    try:
        own = psutil.Process().net_connections("tcp4")
    except (OSError, psutil.Error):  # not allowed: it is known to be on this machine
        return True
    return any(one.laddr and one.laddr.port == port for one in own)
