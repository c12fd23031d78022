"""Runs one command of edgecs and tells about every change to a file before it is made.

    python -m tests.kills.child PIPE REQUEST

REQUEST is JSON: arguments, lines that are typed at a chat, the folder whose files
count, and the change before which the process kills itself (0: none). Lines on PIPE:
`begun`, `step N EVENT PATH`, `typed N`, `ended CODE`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

_CHANGES = {  # audit events and where in their arguments a path is
    "os.rename": 1,
    "os.remove": 0,
    "os.mkdir": 0,
    "os.rmdir": 0,
    "os.truncate": 0,
    "os.link": 1,
    "os.symlink": 1,
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def main(pipe: str, request: str) -> None:
    """Runs the command in this process, as `edgecs` does."""
    asked: dict[str, Any] = json.loads(request)
    steps = _Steps(int(pipe), asked["folder"], asked["stop"])
    running = import_module("edgecs_cli.running")
    _prepare(asked, steps)
    sys.argv = ["edgecs", *asked["arguments"]]
    steps.tell("begun")
    sys.addaudithook(steps)
    code = running.run(asked["arguments"])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    steps.tell(f"ended {code}")


class _Steps:
    """Counts changes to the files of a folder, and kills before one of them."""

    def __init__(self, pipe: int, folder: str, stop: int) -> None:
        self._pipe, self._folder, self._stop = pipe, folder + os.sep, stop
        self._done = 0

    def tell(self, line: str) -> None:
        """Is on the pipe when it returns, whatever becomes of this process."""
        os.write(self._pipe, f"{line}\n".encode())

    def __call__(self, event: str, values: tuple[Any, ...]) -> None:
        """An audit hook."""
        if event == "open":
            path, writes = values[0], values[2] & _WRITES
        elif event in _CHANGES:
            path, writes = values[_CHANGES[event]], True
        else:
            return
        if writes and not isinstance(path, int):
            where = os.path.abspath(os.fsdecode(path))
            if where.startswith(self._folder):
                self.step(event, where.removeprefix(self._folder))

    def step(self, event: str, path: str) -> None:
        """A change that comes now."""
        self._done += 1
        self.tell(f"step {self._done} {event} {path}")
        if self._done == self._stop:
            os.kill(os.getpid(), signal.SIGKILL)


def _prepare(asked: dict[str, Any], steps: _Steps) -> None:
    """Makes small work of what takes long, and types."""
    speculation = import_module("edgecs.calibrate.speculation_profile")
    speculation.BUSY = 1.0  # type: ignore[attr-defined]
    sync = os.fsync

    def synced(file: Any) -> None:
        steps.step("fsync", "-")
        sync(file)

    os.fsync = synced
    if asked["typed"] is not None:
        chat = import_module("edgecs_cli.commands.chat")
        chat.reader = lambda **options: _Typed(asked["typed"], steps)  # type: ignore[attr-defined]
    if "--memory" in asked["arguments"]:
        _write_often(steps)
    if asked["arguments"][0] in ("distill", "memory"):
        data = import_module("edgecs_convert.distill.data")
        data._SHARD = 8  # type: ignore[attr-defined]
    if asked["arguments"][0] == "distill":
        train = import_module("edgecs_convert.distill.train")
        train._SAVE = 0.0  # type: ignore[attr-defined]


def _write_often(steps: _Steps) -> None:
    """Writes all files of a memory after each answer, and tells which are kept."""
    index = import_module("edgecs.memory.index")
    index._IN_FILE = 20  # type: ignore[attr-defined]
    recycled = import_module("edgecs.memory.recycled")
    recycled._SOONEST = 0.0  # type: ignore[attr-defined]
    recycled._RARELY = 0.0  # type: ignore[attr-defined]
    documents = import_module("edgecs.memory.documents").Documents
    add = documents.add

    def added(*arguments: Any) -> Any:
        steps.step("keep", "-")
        number = add(*arguments)
        if number is not None:
            steps.step("kept", "-")
        return number

    documents.add = added


class _Typed:
    """A reader of a chat that is told its lines, and tells which are done."""

    commands = True

    def __init__(self, lines: list[str], steps: _Steps) -> None:
        self._lines, self._steps = enumerate(lines), steps

    def __call__(self) -> str | None:
        number, line = next(self._lines, (-1, None))
        if number > 0:
            self._steps.tell(f"typed {number}")  # all before it are done
        return line

    def answered(self, *, stopped: bool) -> None:
        """Nothing is typed meanwhile."""

    @contextlib.contextmanager
    def usual(self) -> Iterator[None]:
        """There is no terminal."""
        yield


if __name__ == "__main__":
    main(*sys.argv[1:])
