"""Runs cases one after the other in this process, which any of them may end.

    python -m tests.fuzz.worker SEED

Reads lines "KIND NUMBER" and answers each with a line of JSON on the stdout that it was
started with; what commands write goes to files.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import calls, http
from tests.fuzz.kinds import KINDS, Case
from tests.terminal import Terminal

_MEMORY = 6 << 30  # bytes
_FILE = 1 << 30  # bytes of a file
_ON_TERMINAL = re.compile(r"\x1b\]52;|\x9b|\x9d")  # where others are the chat's own
_COPIED = re.compile(r"\x1b\]52;c;[A-Za-z0-9+/=]*\x07")  # by /copy
_OBEYED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")


def main(seed: str) -> None:
    """Until stdin ends."""
    _limit()
    # Commands read and write 0, 1 and 2.
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    for line in requests:
        kind, number = line.rsplit(maxsplit=1)
        answers.write(json.dumps(run(seed, kind, int(number))) + "\n")
        answers.flush()


def run(seed: str, kind: str, number: int) -> dict[str, Any]:
    """One case: the command, its exit code, and what is wrong with it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        random = Random(f"{seed}:{kind}:{number}")
        case = KINDS[kind][0](random, folder)
        if case.requests:
            assert case.served is not None
            problem, said = http.sent(case.requests, case.served, case.n_ctx, random)
            told = [repr(request)[:400] for request in case.requests]
            return {"arguments": told, "code": 0, "problem": problem, "said": said}
        if case.written is not None:
            problem, said = calls.checked(case.written)
            told = repr(case.written)[:2000]
            return {"arguments": told, "code": 0, "problem": problem, "said": said}
        code, said, escaped = (_on_terminal if case.keys else _run)(case, folder)
    problem = ""
    if case.keys and escaped:
        problem = "hangs"
    elif escaped or "Traceback (most recent call last)" in said:
        problem = "tracebacks"
    elif code not in _codes():
        problem = "exit codes"
    elif (_ON_TERMINAL if case.keys else _OBEYED).search(_COPIED.sub("", said)):
        problem = "control characters"
    return {
        "arguments": case.arguments,
        "typed": case.typed or case.keys,
        "code": code,
        "problem": problem,
        "said": escaped or said[-2000:],
    }


def _codes() -> set[int]:
    from edgecs_cli.running import EXIT_CODES

    return {*EXIT_CODES}


def _run(case: Case, folder: Path) -> tuple[int, str, str]:
    """Exit code, stderr, and the traceback of what escaped."""
    from edgecs_cli import running
    from edgecs_cli.commands import chat

    escaped, code = "", -1
    (folder / "in").write_bytes(case.stdin)
    with _environment(case, folder), _streams(folder):
        if case.typed:
            lines = iter([*case.typed])
            reader, chat.reader = chat.reader, lambda **options: _Typed(lines)
        try:
            code = running.run(case.arguments)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            escaped = traceback.format_exc()
        finally:
            if case.typed:
                chat.reader = reader
    return code, (folder / "err").read_text("utf-8", "replace"), escaped


def _on_terminal(case: Case, folder: Path) -> tuple[int, str, str]:
    """Exit code and all that was shown, until the chat or its window is closed."""
    with _environment(case, folder):
        terminal = Terminal(*case.arguments)
    terminal.wait(">", 60)
    for seconds, key in case.keys:
        time.sleep(seconds)
        with contextlib.suppress(OSError):
            terminal.type(key) if isinstance(key, str) else terminal.resize(*key)
    with contextlib.suppress(subprocess.TimeoutExpired):
        terminal.process.wait(2)
    terminal.hang_up()
    try:
        code = terminal.end()
    except subprocess.TimeoutExpired:
        terminal.process.kill()
        return -1, terminal.text, "it did not end after its window was closed"
    return 128 - code if code < 0 else code, terminal.text, ""


class _Typed:
    """A reader of a chat that is told its lines."""

    commands = True

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def __call__(self) -> str | None:
        return next(self._lines, None)

    def answered(self, *, stopped: bool) -> None:
        """Nothing is typed meanwhile."""

    def usual(self) -> contextlib.AbstractContextManager[None]:
        """There is no terminal."""
        return contextlib.nullcontext()


@contextlib.contextmanager
def _environment(case: Case, folder: Path) -> Iterator[None]:
    """Folders of a user that nothing was in, and no network."""
    before = dict(os.environ)
    for kind in ("CACHE", "CONFIG", "STATE"):
        os.environ[f"XDG_{kind}_HOME"] = str(folder / kind.lower())
    os.environ |= {"PIP_NO_INDEX": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    os.environ |= case.variables
    here = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _streams(folder: Path) -> Iterator[None]:
    """Descriptors 0, 1 and 2 are files for a while, and what Python has on them too."""
    kept = [os.dup(number) for number in range(3)]
    streams = sys.stdin, sys.stdout, sys.stderr
    writes = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, name in enumerate(("in", "out", "err")):
        opened = os.open(folder / name, writes if number else os.O_RDONLY, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(os.dup(number), mode, encoding="utf-8")
        for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        sys.stdin, sys.stdout, sys.stderr = streams
        for number, copy in enumerate(kept):
            os.dup2(copy, number)
            os.close(copy)


def _limit() -> None:
    import resource

    for kind, most in (
        (resource.RLIMIT_DATA, _MEMORY),
        (resource.RLIMIT_FSIZE, _FILE),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    main(sys.argv[1])
