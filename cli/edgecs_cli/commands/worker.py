"""`edgecs worker`: holds layers of a model for another host."""

from __future__ import annotations

import errno
import ipaddress
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click
import psutil

from edgecs.engines.host import usable_cores
from edgecs.engines.load_options import MOST_THREADS
from edgecs.engines.workers.addresses import PORT, Address
from edgecs.errors import ConfigError, WorkerError
from edgecs_cli.console import say
from edgecs_cli.options.kinds import Whole
from edgecs_cli.options.shared import reports_errors

_MOST_MIB = 1 << 30
_LOOK = 1.0  # seconds between looks at the server's thread
_SOON = 0.02  # seconds between looks whether it listens


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="IPv4 address to listen on. There is no authentication: anyone who can "
    "connect can use this machine.",
)
@click.option(
    "--port",
    type=Whole(0, 65535),
    default=PORT,
    show_default=True,
    help="Port to listen on; 0: a free one.",
)
@click.option(
    "-t",
    "--threads",
    type=Whole(0, MOST_THREADS),
    default=0,
    show_default=True,
    help="CPU threads; 0: one per physical core.",
)
@click.option(
    "--memory",
    type=Whole(0, _MOST_MIB),
    default=0,
    show_default=True,
    metavar="MIB",
    help="Memory to offer; 0: what is free when a model is loaded.",
)
@click.option("-v", "--verbose", is_flag=True, help="Print ggml's messages.")
@reports_errors
def worker(host: str, port: int, threads: int, memory: int, verbose: bool) -> None:
    """Hold layers of a model for another host.

    It computes on the GPU, or on the CPU if there is none, for one program at a time,
    which names it with --rpc. Ctrl-C or SIGTERM ends it.

    \b
    edgecs worker
    edgecs worker --host 192.168.1.20 --threads 8 --memory 16384
    """
    address = _free_address(host, port)
    from edgecs.engines.llama.rpc import WorkerServer

    server = WorkerServer(threads=threads or usable_cores(), memory=memory << 20)
    devices = ", ".join(
        f"{one.description or one.name} with {one.memory >> 20} MiB"
        for one in server.devices
    )
    if not ipaddress.ip_address(address.host).is_loopback:
        say(
            f"warning: anyone who can connect to {address} can use this machine, as "
            "the worker has no authentication and its traffic is not encrypted: listen "
            f"on 127.0.0.1 and use a tunnel (ssh -L {address.port}:127.0.0.1:"
            f"{address.port}), or trust everyone on that network"
        )
    with _messages(verbose=verbose):
        thread = threading.Thread(target=server.run, args=(address,), daemon=True)
        _end_on_signals()
        thread.start()
        while thread.is_alive() and not _listens(address):
            thread.join(_SOON)
        say(f"offering {devices} at {address}: edgecs chat -m MODEL --rpc {address}")
        while thread.is_alive():  # a handler runs between two waits
            thread.join(_LOOK)
    raise WorkerError(
        f"the worker at {address} ended by itself, as ggml could not listen there or "
        "accept a connection: look at its messages with -v"
    )


def _listens(address: Address) -> bool:
    """Whether this process listens there; a connection would be served as a client."""
    try:
        own = psutil.Process().net_connections("tcp4")
    except (OSError, psutil.Error):
        return True  # not allowed to know
    return any(
        one.status == psutil.CONN_LISTEN and one.laddr.port == address.port
        for one in own
    )


def _end_on_signals() -> None:
    """End the process by SIGINT and SIGTERM, with the exit codes of a shell.

    ggml's server cannot be stopped, so nothing is freed in order.
    """

    def end(number: int, frame: FrameType | None) -> None:
        say("stopped")
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


@contextmanager
def _messages(*, verbose: bool) -> Iterator[None]:
    """Send what ggml prints to standard output to stderr, or nowhere."""
    sys.stdout.flush()
    kept = os.dup(1)
    where = os.dup(2) if verbose else os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(where, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(where)


def _free_address(host: str, port: int) -> Address:
    """An address that can be listened on. Raises ConfigError.

    ggml takes IPv4 addresses only, and does not say why it cannot listen.
    """
    try:
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"--host {host!r:.80} is not an IPv4 address of this machine: give one, or "
            "leave it out for 127.0.0.1"
        ) from error
    where = found[0][4]
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            # As ggml does: a port whose last connections are closing is free.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(where)
            return Address(*sock.getsockname()[:2])
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                why = f"port {port} is in use: end that program, or give another --port"
            elif error.errno == errno.EACCES:
                why = f"port {port} needs privileges: give a --port from 1024 on"
            else:
                why = f"{error.strerror}: give an address of this machine as --host"
            raise ConfigError(f"cannot listen on {host}: {why}") from error
