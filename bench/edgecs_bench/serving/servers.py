"""Servers in processes of their own."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from edgecs_bench.peers.table import PEERS
from edgecs_bench.peers.venvs import venv_for

# Serves until its standard input ends.
_XLLAMACPP = """
import sys
import xllamacpp
params = xllamacpp.CommonParams()
path, slots, context, threads = sys.argv[1], *map(int, sys.argv[2:])
params.model.path, params.n_gpu_layers = path, 0
params.n_parallel, params.n_ctx = slots, slots * context
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.cache_ram_mib, params.verbosity = 0, 1
server = xllamacpp.Server(params)
print("listening on", server.listening_address, flush=True)
sys.stdin.read()
"""
_LISTENS = re.compile(r"listening on (?:http://)?[^ ]*?:(\d+)")


class Server(ABC):
    """How to start a server. slots: conversations at once. context: tokens of each."""

    def __init__(self, model: Path, slots: int, context: int, threads: int) -> None:
        self.model, self.slots = model, slots
        self.context, self.threads = context, threads

    @property
    @abstractmethod
    def command(self) -> Sequence[str]:
        """The command, which serves until its standard input or the process ends."""

    @contextmanager
    def running(self) -> Iterator[Running]:
        """The server, ready for requests."""
        pipe = subprocess.PIPE
        child = subprocess.Popen(
            self.command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )
        try:
            assert child.stdout is not None
            port = _port(child.stdout)
            # Unread output would fill the pipe and stop the server.
            threading.Thread(target=child.stdout.read, daemon=True).start()
            yield Running(port, psutil.Process(child.pid))
        finally:
            child.terminate()
            child.wait()


class Running:
    """A server that answers requests on loopback."""

    def __init__(self, port: int, process: psutil.Process) -> None:
        self.port, self._process = port, process

    @property
    def memory(self) -> int:
        """Resident bytes of the process."""
        return int(self._process.memory_info().rss)


class Edgecs(Server):
    """`edgecs serve`."""

    @property
    def command(self) -> Sequence[str]:
        """See `Server`."""
        sizes = {"-np": self.slots, "-c": self.context, "-t": self.threads}
        options = [part for name, size in sizes.items() for part in (name, str(size))]
        serve = [sys.executable, "-m", "edgecs", "serve", "-m", str(self.model)]
        return [*serve, "--port", "0", *options]


class Xllamacpp(Server):
    """llama.cpp's server, from the wheel of xllamacpp."""

    def __init__(
        self, model: Path, slots: int, context: int, threads: int, peers: Path
    ) -> None:
        super().__init__(model, slots, context, threads)
        (peer,) = (peer for peer in PEERS if peer.name == "xllamacpp")
        self._python = venv_for(peer, peers, lambda text: print(text, file=sys.stderr))

    @property
    def command(self) -> Sequence[str]:
        """See `Server`."""
        sizes = map(str, (self.slots, self.context, self.threads))
        return [str(self._python), "-I", "-c", _XLLAMACPP, str(self.model), *sizes]


def _port(lines: IO[str]) -> int:
    said = []
    for line in lines:
        said.append(line)
        if found := _LISTENS.search(line):
            return int(found[1])
    raise RuntimeError(f"the server ended: {''.join(said)[-500:]}")
