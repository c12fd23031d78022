"""A child process that answers each JSON line with one, within a time limit.

It knows nothing about models. The stderr of the child is kept for the error message.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from edgecs_bench.peers.failure import PeerFailed

_GRACE = 5.0  # seconds for a process to end by itself
_KEPT = 20  # lines of stderr
_SHOWN = 200  # characters of a line in a message


class Line:
    """The process and its pipes; has `close`. name: for messages."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        """Raises PeerFailed if the command cannot be started."""
        self._name = name
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._said: deque[str] = deque(maxlen=_KEPT)
        self._open = True
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise PeerFailed(f"{name} cannot be started: {error}") from error
        self._listener = _thread(self._listen)
        self._keeper = _thread(self._keep)

    @property
    def pid(self) -> int:
        """The id of the child process."""
        return self._process.pid

    def ask(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Sends a request and returns the answer.

        Raises PeerFailed. After an error that the child reports it can be called again;
        after any other failure the process is closed.
        """
        if not self._open:
            raise PeerFailed(f"{self._name} has failed before")
        try:
            answer = self._ask(question, seconds)
        except BaseException:
            self._end()
            self.close()
            raise
        if "error" in answer:
            raise PeerFailed(f"{self._name}: {answer['error']}")
        return answer

    def _ask(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        # In a thread, because a child that does not read would block a long request.
        _thread(self._write, json.dumps(question) + "\n")
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            why = f"{self._name} did not answer within {seconds:g} s"
            raise PeerFailed(why + self._stderr_tail()) from None
        if line is None:
            raise PeerFailed(f"{self._name} ended {self._how()}{self._stderr_tail()}")
        with suppress(ValueError):
            answer = json.loads(line)
            if isinstance(answer, dict):
                return answer
        raise PeerFailed(f"{self._name} gave an invalid answer: {line[:_SHOWN]!r}")

    def _how(self) -> str:
        """Describes how a child that closed its stdout has ended."""
        self._keeper.join(_GRACE)
        try:
            code = self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            return "its output"
        if code < 0:
            return f"by {signal.Signals(-code).name}"
        return f"with exit code {code}"

    def _stderr_tail(self) -> str:
        return f": {self._said[-1][:_SHOWN]}" if self._said else ""

    def _write(self, line: str) -> None:
        # If the child has ended, `_ask` notices it.
        with suppress(OSError, ValueError):
            pipe = _there(self._process.stdin)
            pipe.write(line)
            pipe.flush()

    def _listen(self) -> None:
        for line in _there(self._process.stdout):
            self._answers.put(line)
        self._answers.put(None)

    def _keep(self) -> None:
        for line in _there(self._process.stderr):
            if text := line.strip():
                self._said.append(text)

    def close(self) -> None:
        """Ends the child and all processes it started; may be called again."""
        if not self._open:
            return
        self._open = False
        with suppress(OSError):
            _there(self._process.stdin).close()
        self._listener.join(_GRACE)
        self._end()
        self._process.wait()
        # A grandchild in its own session may keep a pipe open.
        for thread, pipe in (
            (self._listener, self._process.stdout),
            (self._keeper, self._process.stderr),
        ):
            thread.join(_GRACE)
            if not thread.is_alive():
                _there(pipe).close()

    def _end(self) -> None:
        if not hasattr(os, "killpg"):
            self._process.kill()
            return
        # On macOS a group of zombies cannot be signalled.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _thread(target: Any, *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def _there(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
