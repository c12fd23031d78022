"""Helpers of several commands: errors, progress bars, Ctrl-C."""

from __future__ import annotations

import errno
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from edgecs.errors import EdgecsError
from edgecs_cli.console import abandon, harmless

if TYPE_CHECKING:
    from edgecs.hub.download import Progress

P = ParamSpec("P")
R = TypeVar("R")

READER_GONE = 141  # 128 + SIGPIPE, as a C program would end


class Failure(click.ClickException):
    """A failed command: a one-sentence message and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
        self.ctx = click.get_current_context(silent=True)


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Converts the library's errors to those of the command line."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            result = command(*args, **kwargs)
            sys.stdout.flush()  # finds a closed pipe here, not at exit
            return result
        except EdgecsError as error:
            raise Failure(str(error), error.exit_code) from error
        except OSError as error:  # from stdout or stderr
            abandon(sys.stdout)
            if _is_gone(error):
                raise click.exceptions.Exit(READER_GONE) from error
            raise Failure(f"cannot continue: {error}", 1) from error

    return wrapped


def _is_gone(error: OSError) -> bool:
    """Whether the reader closed the pipe; on Windows that is EINVAL."""
    gone = error.errno == errno.EPIPE
    return gone or (sys.platform == "win32" and error.errno == errno.EINVAL)


class _Bars:
    """Progress bars on stderr, one per kind of work."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console
        from rich.table import Column
        from rich.text import Text

        class Speed(progress.ProgressColumn):
            def render(self, task: progress.Task) -> Text:
                speed = (task.finished_speed or task.speed or 0) / (1 << 20)
                return Text(f"{speed:.1f} MiB/s", style="progress.data.speed")

        name = Column(no_wrap=True)  # cut off where the terminal has too few columns
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}", markup=False, table_column=name),
            progress.BarColumn(10),
            progress.DownloadColumn(binary_units=True),
            Speed(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, progress.TaskID] = {}
        self._bars.start()

    def advance(self, what: str, done: int, total: int) -> None:
        what = harmless(what)
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total or None)
        self._bars.update(self._tasks[what], completed=done)

    def stop(self) -> None:
        self._bars.stop()


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A progress callback that creates bars on its first call."""
    made: list[_Bars] = []

    def advance(what: str, done: int, total: int) -> None:
        if not made:
            made.append(_Bars())
        made[0].advance(what, done, total)

    try:
        yield advance
    finally:
        for bars in made:
            bars.stop()


@contextmanager
def pace_bar(
    state: Callable[[], tuple[float, float]],
) -> Iterator[Callable[[str], None]]:
    """A transient bar with an estimate; the function it yields sets the label.

    state: returns the share that is done and the seconds that are left.
    """
    from rich import progress
    from rich.console import Console, RenderableType

    class Bar(progress.Progress):
        def get_renderables(self) -> Iterator[RenderableType]:
            share, left = state()
            for task in self.tasks:
                task.completed, task.fields["left"] = share, in_words(left)
            yield self.make_tasks_table(self.tasks)

    # Drawing disturbs what is measured, so it happens once a second.
    bar = Bar(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(20),
        progress.TextColumn("{task.fields[left]}", markup=False),
        console=Console(stderr=True),
        refresh_per_second=1,
        transient=True,
    )
    task = bar.add_task("", total=1.0, left="")
    with bar:
        yield lambda text: bar.update(task, description=harmless(text))


def in_words(seconds: float) -> str:
    """The remaining time, rounded to the precision of the estimate.

    >>> in_words(4), in_words(42), in_words(89), in_words(200)
    ('seconds left', 'about 40 s left', 'about 90 s left', 'about 3 min left')
    """
    if seconds < 8:
        return "seconds left"
    if seconds < 95:
        return f"about {round(seconds / 10) * 10} s left"
    return f"about {round(seconds / 60)} min left"


class Interrupt:
    """While entered, the first Ctrl-C sets `event`; the next one raises if `insists`.

    An exception cannot pass through llama.cpp, which polls the event instead. on_stop:
    called when the event is set, for work that does not poll it.
    """

    def __init__(self, *, insists: bool = True) -> None:
        self.event = threading.Event()
        self.on_stop: Callable[[], None] | None = None
        self._insists = insists

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._insists and self.event.is_set():
            raise KeyboardInterrupt
        self.event.set()
        if self.on_stop:
            self.on_stop()

    def __enter__(self) -> threading.Event:
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is not signal.SIG_IGN:  # in the background it stays ignored
            signal.signal(signal.SIGINT, self._on_signal)
        return self.event

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGINT, self._before)
