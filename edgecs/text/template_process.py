"""The child process that renders a chat template.

It runs `template_child.py`, which describes requests and answers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edgecs.errors import ConfigError, ModelError

RAW = "use --raw to feed the text as it is"
_CHILD = Path(__file__).with_name("template_child.py")
_START = 30.0  # seconds: usually 0.07, many more if the machine is busy
_SECONDS = 5.0  # limit of one render
_LINE = (6 * 16 << 20) + 1024  # bytes; in JSON a control character takes six
_MESSAGE = 300  # characters of a template's message


class Renderer:
    """Renders one template in a process of its own, which ends with this object.

    Threads may share it. Raises ModelError if the template is invalid or exceeds its
    limits, and if no process can be started.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._child: _Child | None = None
        with self._at_work():
            self._start()

    def render(self, values: Mapping[str, Any]) -> str:
        """The rendered text. Raises ConfigError if the template refuses the values."""
        request = _line(values)
        with self._at_work():
            try:
                return self._rendered(request)
            except _Failed as error:
                raise ConfigError(
                    f"the chat template refuses this conversation: {error}"
                ) from error

    def close(self) -> None:
        """Ends the process; the next render starts another one."""
        with self._lock:
            self._end()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """One thread at a time; after an error other than a refusal, a new process.

        The old one may still send its answer, which would be taken for the answer to
        the next request.
        """
        with self._lock:
            try:
                yield
            except ConfigError:
                raise
            except _Died as error:
                self._end()
                raise _stopped("its process died") from error
            except BaseException:
                self._end()
                raise

    def _rendered(self, request: bytes) -> str:
        if self._child:
            # It may have been killed since its last answer, as if memory ran out.
            with suppress(_Died):
                return self._child.ask(request, _SECONDS)
            self._end()
        return self._start().ask(request, _SECONDS)

    def _start(self) -> _Child:
        """A process that has compiled the template."""
        child = self._child = _Child()
        try:
            child.ask(b"", _START)
        except (_Died, ModelError) as error:
            raise ModelError(
                "the process that renders chat templates does not start "
                f"({sys.executable}): {RAW}"
            ) from error
        try:
            child.ask(_line(self._source), _SECONDS)
        except _Failed as error:
            raise ModelError(f"the chat template is broken: {error}") from error
        return child

    def _end(self) -> None:
        if self._child:
            self._child.end()
        self._child = None


class _Failed(Exception):
    """The template's own error message."""


class _Died(Exception):
    """The process has ended."""


class _Child:
    """One process, which ends with this object."""

    def __init__(self) -> None:
        self._process = _popen()
        self.end = weakref.finalize(self, _end, self._process)

    def ask(self, request: bytes, seconds: float) -> str:
        """The answer to a request. Raises _Failed, _Died, ModelError."""
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()  # also unblocks the thread that writes to it or reads

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            line = self._exchange(request)
        finally:
            timer.cancel()
            timer.join()  # its thread holds this process as long as it lives
        if late.is_set():
            raise _stopped(f"it takes longer than {seconds:g} seconds")
        return _text(line)

    def _exchange(self, request: bytes) -> bytes:
        pipes = self._process
        assert pipes.stdin
        assert pipes.stdout
        try:
            pipes.stdin.write(request)
            pipes.stdin.flush()
        except OSError:  # the process has ended
            return b""
        return pipes.stdout.readline(_LINE)


def _text(line: bytes) -> str:
    if not line.endswith(b"\n"):
        raise _stopped("it writes too much") if len(line) == _LINE else _Died
    with suppress(ValueError, RecursionError):  # not JSON, or nested too deep
        match json.loads(line):
            case ["done", str(text)]:
                return text
            case ["failed", str(text)]:
                raise _Failed(_shown(text))
            case ["stopped", str(text)]:
                raise _stopped(_shown(text))
    raise _stopped("its process returned invalid data")


def _popen() -> subprocess.Popen[bytes]:
    """Starts the process; -P, as its folder has names of Python's modules."""
    if getattr(sys, "frozen", False) or not sys.executable:
        raise ModelError(
            f"the chat template needs a Python interpreter, which was not found: {RAW}"
        )
    try:
        return subprocess.Popen(
            [sys.executable, "-P", _CHILD, str(_SECONDS + 1), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C must not reach it
        )
    except OSError as error:
        raise ModelError(
            f"no process for the chat template could be started ({error.strerror}): "
            f"{RAW}"
        ) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # closing writes what the process did not take
            if pipe:
                pipe.close()
    process.wait()


def _line(value: object) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the messages are not strings ({error}): a message is "
            '{"role": ..., "content": ...}'
        ) from error
    line = f"{text}\n".encode("utf-8", "surrogatepass")
    if len(line) > _LINE:
        raise ConfigError(
            f"the conversation has {len(line)} bytes, and a chat template takes "
            f"{_LINE}: shorten it"
        )
    return line


def _shown(text: str) -> str:
    """A message from a template, on one line and without control characters."""
    line = " ".join(text[:_MESSAGE].split())
    return "".join(c if c.isprintable() else "\ufffd" for c in line)


def _stopped(why: str) -> ModelError:
    return ModelError(
        f"the chat template was stopped ({why}): use another model, or --raw to feed "
        "the text as it is"
    )
