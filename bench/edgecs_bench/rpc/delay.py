"""A TCP proxy that delays every byte, in each direction: a network of some latency.

    python -m edgecs_bench.rpc.delay HOST:PORT MILLISECONDS

It prints the port that it listens on. Bytes are kept in order and are not slowed down
otherwise. Delays of the system's own (`tc netem`) need privileges and a kernel module.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections import deque
from contextlib import suppress

from edgecs.engines.workers.addresses import Address, parse_addresses

_BLOCK = 1 << 18  # bytes that are read at once
_HELD = 64 << 20  # bytes under way in one direction


class Pipe:
    """One direction of a connection: what is read is sent `delay` seconds later."""

    def __init__(
        self, source: socket.socket, target: socket.socket, delay: float
    ) -> None:
        self._source, self._target, self._delay = source, target, delay
        self._parts: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        for work in (self._read, self._write):
            threading.Thread(target=work, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = self._source.recv(_BLOCK)
            except OSError:
                data = b""
            with self._changed:
                self._parts.append((time.perf_counter() + self._delay, data))
                self._bytes += len(data)
                self._changed.notify_all()
                while self._bytes > _HELD:
                    self._changed.wait()
            if not data:
                return

    def _write(self) -> None:
        while True:
            with self._changed:
                while not self._parts:
                    self._changed.wait()
                due, data = self._parts.popleft()
                self._bytes -= len(data)
                self._changed.notify_all()
            if (left := due - time.perf_counter()) > 0:
                time.sleep(left)
            try:
                if data:
                    self._target.sendall(data)
                    continue
            except OSError:
                pass
            # The end, which the other side sees after all that came before it.
            for sock in (self._source, self._target):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            return


def serve(listener: socket.socket, target: Address, delay: float) -> None:
    """Pass every connection on, until the listener is closed."""
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        try:
            worker = socket.create_connection(target)
        except OSError:
            client.close()
            continue
        for sock in (client, worker):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Pipe(client, worker, delay)
        Pipe(worker, client, delay)


def main() -> None:
    """Run the proxy until it is ended."""
    (target,) = parse_addresses(sys.argv[1])
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    serve(listener, target, float(sys.argv[2]) / 1e3)


if __name__ == "__main__":
    main()
