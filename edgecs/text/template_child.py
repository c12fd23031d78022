"""Renders a chat template in a process with limits.

    python -P template_child.py SECONDS [FOLDER ...]

A template comes with an untrusted model, and is a program. Jinja's sandbox isolates it
from the rest of Python. Only a process can limit its time and memory: slow operations
are often a single call into C, which no thread can stop.

Requests are read from stdin and answers written to stdout, both as lines of JSON. The
first answer is written without a request, once Jinja is imported. The first request is
the template; each of the others has the values of its variables. An answer is
["done", text], ["failed", message] or ["stopped", reason]. A request that takes more
than SECONDS ends the process, even if the parent was killed. FOLDERs: the import path.

This file runs on its own and does not import edgecs.
"""

import sys

if __name__ == "__main__":
    sys.path[:] = sys.argv[2:]

import json
import signal
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_TEXT = 16 << 20  # characters that a template may write
_MESSAGE = 1 << 10  # characters of an error's message
_MEMORY = 512 << 20  # bytes that can be written to; Python with Jinja takes 12 MB
_LIMITS = {
    "RLIMIT_DATA": _MEMORY,
    "RLIMIT_CORE": 0,
    "RLIMIT_FSIZE": 0,
    "RLIMIT_NPROC": 0,
}


class Generation(Extension):
    """{% generation %}, with which transformers marks answers for training."""

    tags = {"generation"}  # noqa: RUF012  as in its base class

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox:
    """Compiles a template, then renders it."""

    def __init__(self) -> None:
        self._environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
        )
        self._environment.globals["raise_exception"] = _raise
        self._environment.globals["strftime_now"] = _now
        self._environment.filters["tojson"] = _json
        self._template = Template("")

    def work(self, request: str | dict[str, Any]) -> str:
        """The rendered text for these values; "" for the template itself."""
        if isinstance(request, str):
            self._template = self._environment.from_string(request)
            return ""
        pieces, size = [], 0
        for piece in self._template.generate(request):
            pieces.append(piece)
            size += len(piece)
            if size > _TEXT:
                raise MemoryError(f"it writes more than {_TEXT} characters")
        return "".join(pieces)


def answer(line: bytes, work: Callable[[Any], str]) -> bytes:
    """The answer to a request, both as lines."""
    try:
        return _line("done", work(json.loads(line)))
    except RecursionError:
        return _line("stopped", "it nests or recurses too deep")
    except MemoryError as error:
        memory = f"it takes more than {_MEMORY >> 20} MiB of memory"
        return _line("stopped", str(error) or memory)
    except Exception as error:
        return _line("failed", _message(error)[:_MESSAGE])


def _line(*answer: str) -> bytes:
    # A template may write half of a surrogate pair, which is not UTF-8.
    text = json.dumps(answer, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "surrogatepass")


def _message(error: Exception) -> str:
    """The message of an error; its type if str() fails, as for huge numbers."""
    with suppress(Exception):
        return str(error) or type(error).__name__
    return type(error).__name__


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _limit() -> None:
    """Sets the limits that the system supports."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, most in _LIMITS.items():
        with suppress(AttributeError, ValueError, OSError):  # macOS refuses some
            resource.setrlimit(getattr(resource, name), (most, most))


def _alarm(seconds: float) -> None:
    """Ends this process after this time, even within a call into C; 0: never."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_REAL, seconds)


def main() -> None:
    """Answers until stdin ends."""
    seconds = float(sys.argv[1])
    sandbox = Sandbox()
    _limit()
    said = _line("done", "")
    while True:
        sys.stdout.buffer.write(said)
        sys.stdout.buffer.flush()
        line = sys.stdin.buffer.readline()
        if not line:
            return
        _alarm(seconds)
        said = answer(line, sandbox.work)
        _alarm(0)


if __name__ == "__main__":
    main()
