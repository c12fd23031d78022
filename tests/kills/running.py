"""A command in a process of its own, and how it is killed."""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

import psutil

ROOT = Path(__file__).parent.parent.parent
_CHILD = (sys.executable, "-m", "tests.kills.child")
_HANGS = 120.0  # seconds after which a command is given up
_MARK = "TESTS_KILLS"  # in the environment of all that a command starts


class Moment(NamedTuple):
    """When a process is killed.

    seconds: after it began. step: right before this change to a file, or with `after`
    so many seconds after it was announced.
    """

    seconds: float = 0.0
    step: int = 0
    after: float | None = None

    def __str__(self) -> str:
        if not self.step:
            return f"after {self.seconds:.3f} s"
        if self.after is None:
            return f"before change {self.step}"
        return f"{self.after * 1e3:.2f} ms after change {self.step} began"


@dataclass
class Ended:
    """What became of a process, and what it told."""

    code: int | None = None  # of the command; None: it was killed before its end
    begun: bool = False
    typed: int = 0  # lines of a chat that are done
    steps: list[tuple[str, str]] = field(default_factory=list)  # event, path
    seconds: float = 0.0  # from its begin to its end
    said: str = ""
    hangs: bool = False
    crashed: int = 0  # exit code of a process that ended by itself without a word

    @property
    def killed(self) -> bool:
        """In the middle of its work."""
        return self.begun and self.code is None and not self.crashed

    @property
    def certain(self) -> list[tuple[str, str]]:
        """Changes that are made: of the last one that is not known."""
        return self.steps[:-1] if self.code is None else self.steps

    @property
    def renamed(self) -> list[str]:
        """Names that files were certainly given."""
        return [path for event, path in self.certain if event == "os.rename"]


def drawn(random: Random, seconds: float, steps: int) -> Moment:
    """A moment in a command whose undisturbed run took so long and so many changes."""
    kind = random.randrange(3)
    if kind == 0:
        return Moment(seconds=random.uniform(0, seconds))
    step = random.randint(1, max(1, steps))
    return Moment(step=step, after=None if kind == 1 else random.expovariate(2000))


class Place:
    """A folder in which commands run, with caches and a state of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._temporary = folder.with_name(f"{folder.name}-tmp")
        self._said = folder.with_name(f"{folder.name}-said")
        folder.mkdir()
        self._temporary.mkdir()

    @property
    def cache(self) -> Path:
        """edgecs's own."""
        return self.folder / "cache" / "edgecs"

    @property
    def chats(self) -> Path:
        """Conversations that are kept by themselves."""
        return self.folder / "state" / "edgecs" / "chats"

    def files(self) -> set[str]:
        """Everything that is no folder, and folders with nothing in them."""
        return {
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if not path.is_dir() or not any(path.iterdir())
        }

    def run(
        self,
        arguments: list[str],
        typed: list[str] | None = None,
        variables: dict[str, str] | None = None,
        moment: Moment | None = None,
    ) -> Ended:
        """A command until its end, or until it is killed."""
        ours, theirs = os.pipe()
        exact = moment is not None and moment.after is None
        request = {
            "arguments": arguments,
            "typed": typed,
            "folder": str(self.folder),
            "stop": moment.step if moment and exact else 0,
        }
        with self._said.open("wb") as output:
            process = subprocess.Popen(
                [*_CHILD, str(theirs), json.dumps(request)],
                cwd=self.folder,
                env=self._environment(variables or {}),
                pass_fds=[theirs],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        os.close(theirs)
        try:
            ended = _follow(process, ours, moment)
        finally:
            process.kill()
            process.wait()
            os.close(ours)
        if ended.code is None and (not moment or process.returncode != -signal.SIGKILL):
            ended.crashed = process.returncode
        ended.said = self._said.read_text("utf-8", "replace")
        return ended

    def _environment(self, variables: dict[str, str]) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("EDGECS_", "PIP_", "HF_"))
        }
        homes = {f"XDG_{kind}_HOME": kind.lower() for kind in ("CACHE", "STATE")}
        homes |= {"XDG_CONFIG_HOME": "config", "XDG_DATA_HOME": "data"}
        homes |= {"HF_HOME": "hf"}
        own = {name: str(self.folder / path) for name, path in homes.items()}
        own["TMPDIR"] = str(self._temporary)
        own["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        own["PYTHONDONTWRITEBYTECODE"] = "1"
        own["PIP_CONFIG_FILE"] = os.devnull
        return {**kept, **own, **variables, _MARK: self._mark}

    def remove(self) -> None:
        """Deletes all that belongs to it."""
        for folder in (self.folder, self._temporary):
            shutil.rmtree(folder, ignore_errors=True)
        self._said.unlink(missing_ok=True)

    def held_locks(self) -> list[str]:
        """Lock files that somebody holds."""
        from filelock import FileLock, Timeout

        held = []
        for path in self.folder.rglob("*.lock"):
            try:
                with FileLock(path, timeout=0):
                    pass
            except Timeout:
                held.append(path.name)
        return held

    def end(self, seconds: float) -> list[str]:
        """Processes that commands left and that do not end by themselves."""
        until = time.monotonic() + seconds
        while (left := self._started()) and time.monotonic() < until:
            time.sleep(0.05)
        names = [" ".join(_command(process))[:200] for process in left]
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        return names

    def _started(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == self._mark:
                    found.append(process)
        return found


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return ["a process that is gone"]


def _follow(
    process: subprocess.Popen[bytes], pipe: int, moment: Moment | None
) -> Ended:
    """Reads what a process tells, and kills it when it is time."""
    ended, rest, began = Ended(), b"", 0.0
    until = time.monotonic() + _HANGS  # or when it is to be killed
    kill = False
    while True:
        wait = until - time.monotonic()
        if wait <= 0 or not select.select([pipe], [], [], wait)[0]:
            ended.hangs = not kill
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            until, kill = time.monotonic() + _HANGS, True
            continue
        data = os.read(pipe, 1 << 16)
        if not data:
            return ended
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            what, *more = line.decode("utf-8", "surrogateescape").split(" ", 3)
            if what == "begun":
                ended.begun, began = True, time.monotonic()
                if moment and not moment.step:
                    until, kill = began + moment.seconds, True
            elif what == "step":
                ended.steps.append((more[1], more[2]))
                exact = not moment or moment.after is None
                if moment and not exact and int(more[0]) == moment.step:
                    until, kill = time.monotonic() + (moment.after or 0.0), True
            elif what == "typed":
                ended.typed = int(more[0])
            elif what == "ended":
                ended.code, ended.seconds = int(more[0]), time.monotonic() - began
                until, kill = time.monotonic() + _HANGS, False
