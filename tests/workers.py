"""Workers with llama.cpp, for tests; without its RPC backend those are skipped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from edgecs.engines.llama import rpc

needs_rpc = pytest.mark.skipif(
    not rpc.available(), reason="llama.cpp has no RPC backend: make RPC=1"
)


class Started(NamedTuple):
    """A running worker. said: its first lines."""

    process: subprocess.Popen[str]
    said: str
    address: str

    def kill(self) -> None:
        """End it without a warning, as a power failure does."""
        self.process.kill()
        self.process.wait()


@contextmanager
def started(*options: object) -> Iterator[Started]:
    """A worker on a free port of this machine, with one thread."""
    command = [sys.executable, "-m", "edgecs", "worker", "--port", 0, "-t", 1, *options]
    with subprocess.Popen(
        [*map(str, command)], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            said = ""
            while " --rpc " not in said:
                line = process.stderr.readline()
                assert line, said
                said += line
            yield Started(process, said, said.split(" --rpc ")[1].strip())
        finally:
            process.kill()
