"""Run compilers, and end them together with the processes that they have started.

A compiler's driver leaves the work to other processes, which would outlive it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgecs.errors import Cancelled, EdgecsError

_POLL = 0.1  # seconds
_SHOWN = 300  # characters of a compiler's message


class BuildError(EdgecsError):
    """The kernels cannot be compiled; the message is part of a sentence."""


class Compilers:
    """Compilers, started from any thread; the end of the `with` block ends them.

    patience: seconds for one command. cancel: ends them when it is set.
    """

    def __init__(self, patience: float, cancel: threading.Event | None = None) -> None:
        self._patience, self._cancel = patience, cancel or threading.Event()
        self._ended = threading.Event()

    def __enter__(self) -> Compilers:
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()

    def run(self, command: Sequence[str | Path]) -> None:
        """Run a compiler; raises BuildError with its first error message, Cancelled."""
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # with a process group, see `_end`
        ) as process:
            try:
                messages = self._messages(process, command[0])
            finally:
                _end(process)
        if process.returncode:
            lines = [line for line in messages.splitlines() if "error" in line]
            said = (lines or messages.splitlines() or ["no error message"])[0]
            raise BuildError(f"{command[0]} fails: {said[:_SHOWN]}")

    def _messages(self, process: subprocess.Popen[str], name: str | Path) -> str:
        began = time.monotonic()
        while True:
            if self._cancel.is_set():
                raise Cancelled("stopped while compiling kernels")
            if self._ended.is_set():
                raise BuildError(f"{name} was stopped")
            with suppress(subprocess.TimeoutExpired):
                return process.communicate(timeout=_POLL)[1]
            if time.monotonic() - began > self._patience:
                raise BuildError(f"{name} takes more than {self._patience} s")


def _end(process: subprocess.Popen[str]) -> None:
    """Until the driver is waited for, its number names its group and no other one."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
