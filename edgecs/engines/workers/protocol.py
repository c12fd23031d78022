"""The protocol of ggml's RPC backend, version 7: ggml/src/ggml-rpc/ggml-rpc.cpp.

A request is a command (1 byte), the size of its data (8 bytes) and the data. Some
commands have a reply: its size (8 bytes) and data, whose size the request tells. All
numbers are little-endian.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from edgecs.core.reading import reason
from edgecs.engines.workers.addresses import Address
from edgecs.errors import WorkerError

MAJOR, MINOR = 7, 0
"""The version whose commands are known here; others of the same major may be older."""
HEAD, SIZE = struct.Struct("<BQ"), struct.Struct("<Q")
HELLO = 14
_CAPABILITIES = bytes(24)  # none: no RDMA, which would leave the TCP connection
_GET_TENSOR = 8
# Sizes of the replies in bytes; `_GET_TENSOR` has the size at the end of its request.
_REPLIES = {
    0: 16,  # ALLOC_BUFFER: pointer, size
    1: 8,  # GET_ALIGNMENT
    2: 8,  # GET_MAX_SIZE
    3: 8,  # BUFFER_GET_BASE
    7: 1,  # SET_TENSOR_HASH: whether the data are known
    9: 1,  # COPY_TENSOR: whether it was done
    11: 16,  # GET_DEVICE_MEMORY: free, total
    13: 8,  # GET_ALLOC_SIZE
    HELLO: 4 + len(_CAPABILITIES),  # major, minor, patch, padding, capabilities
    15: 4,  # DEVICE_COUNT
}
# What llama.cpp takes for an answer of a worker that is lost, so that it goes on to the
# end of its call; zeros for all others. An address and an alignment must not be zero.
_SUBSTITUTES = {
    1: SIZE.pack(32),
    2: SIZE.pack((1 << 63) - 1),
    3: SIZE.pack(1 << 12),
    7: b"\1",
    9: b"\1",
    HELLO: bytes([MAJOR, MINOR, 0, 0]) + _CAPABILITIES,
}
# chosen: longer than a busy machine takes to answer, shorter than a user waits.
PATIENCE = 10.0  # seconds for a connection and a greeting
_IDLE, _BETWEEN, _PROBES = 10, 5, 4  # TCP keep-alive: a dead host is noticed in 30 s
_MADE = (_IDLE + _BETWEEN * _PROBES) * 1000  # milliseconds for sent data


class Version(NamedTuple):
    """The version of a worker's protocol."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        """As ggml writes it."""
        return f"{self.major}.{self.minor}.{self.patch}"


def reply_size(command: int, tail: bytes) -> int | None:
    """Size of the reply in bytes, None: there is none. tail: the end of the request."""
    if command == _GET_TENSOR and len(tail) >= SIZE.size:
        return int(SIZE.unpack(tail[-SIZE.size :])[0])
    return _REPLIES.get(command)


def substitute(command: int) -> bytes:
    """The reply on behalf of a lost worker; it goes on with zeros."""
    return _SUBSTITUTES.get(command, b"")


def connect(address: Address) -> socket.socket:
    """A connection to a worker that says hello within `PATIENCE`.

    Raises WorkerError if there is none, if it does not answer, or if it speaks another
    protocol or version.
    """
    try:
        sock = socket.create_connection(address, PATIENCE)
    except (OSError, UnicodeError) as error:
        raise WorkerError(
            f"no worker answers at {address} ({_why(error)}): start one there with "
            "`edgecs worker`, or correct --rpc"
        ) from error
    try:
        version = _greet(sock, address)
        if version.major != MAJOR or version.minor > MINOR:
            raise WorkerError(
                f"the worker at {address} speaks version {version} of ggml's RPC "
                f"protocol, and this machine {MAJOR}.{MINOR}: install the same version "
                "of edgecs and llama-cpp-python on both"
            )
        _watch(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _greet(sock: socket.socket, address: Address) -> Version:
    """Raises WorkerError."""
    wanted = _REPLIES[HELLO]
    try:
        sock.sendall(HEAD.pack(HELLO, len(_CAPABILITIES)) + _CAPABILITIES)
        # Byte by byte checked: another program may answer less, or something else.
        size = _exactly(sock, SIZE.size)
        data = _exactly(sock, wanted) if size == SIZE.pack(wanted) else b""
    except TimeoutError as error:
        raise WorkerError(
            f"{address} accepts connections but does not answer: a worker serves one "
            "program at a time, so end the other one, or start another worker"
        ) from error
    except OSError as error:
        raise _no_worker(address, _why(error)) from error
    if len(data) != wanted:
        raise _no_worker(address, f"its answer begins with {size + data!r:.40}")
    return Version(*data[:3])


def _exactly(sock: socket.socket, size: int) -> bytes:
    """As many bytes, or those before the end of the connection."""
    data = b""
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return data


def _no_worker(address: Address, why: str) -> WorkerError:
    return WorkerError(
        f"the program at {address} is not a worker of this version ({why}): check the "
        "host and the port of --rpc"
    )


def _watch(sock: socket.socket) -> None:
    """Have the system notice hosts that vanish; a slow answer may take any time."""
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _IDLE),
        ("TCP_KEEPINTVL", _BETWEEN),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", _MADE),
    ):
        if option := getattr(socket, name, None):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no connection in {PATIENCE:g} s"
    return reason(error)
