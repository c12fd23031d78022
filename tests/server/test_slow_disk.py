"""A disk that is slow, full or broken delays and changes no answer of others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgecs.engines.kv_snapshot import KVSnapshot
from edgecs.server.batching.job import Ended
from edgecs.server.batching.scheduler import Scheduler
from edgecs.server.prefixes import store as stores
from edgecs.server.prefixes.file_thread import FileThread
from tests.server.test_prefix_store import LONG, OTHER, answer, files, stored
from tests.server.test_scheduler import WAIT, Client, Shared, alone, job


class Disk:
    """A disk whose reads and writes wait until it is let go."""

    def __init__(self) -> None:
        self.goes, self.asked = threading.Event(), threading.Event()

    def slowly(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def later(*args: Any, **more: Any) -> Any:
            self.asked.set()
            assert self.goes.wait(WAIT)
            return work(*args, **more)

        return later


@contextmanager
def slow(
    monkeypatch: pytest.MonkeyPatch, name: str, *, at: Any = stores
) -> Iterator[Disk]:
    disk = Disk()
    with monkeypatch.context() as patch:
        patch.setattr(at, name, disk.slowly(getattr(at, name)))
        try:
            yield disk
        finally:
            disk.goes.set()


def said(made: Scheduler, prompt: list[int], most: int = 5) -> Ended:
    client = Client(made, job(prompt, most))
    ended = client.end()
    assert isinstance(ended, Ended)
    assert client.tokens == alone(prompt, most)
    return ended


def test_a_slow_read_delays_no_other_answer(tmp_path: Path, monkeypatch):
    with stored(tmp_path) as made:
        answer(made, LONG)
    with (
        slow(monkeypatch, "read") as disk,
        stored(tmp_path, Shared(2)) as made,
    ):
        waiting = Client(made, job([*LONG, 1], 5))
        assert disk.asked.wait(WAIT)
        for _ in range(3):  # whole answers, while the file is read
            said(made, OTHER, 20)
        assert waiting.tokens == []
        disk.goes.set()
        ended = waiting.end()
        assert isinstance(ended, Ended)
        assert ended.stats.cached_tokens >= len(LONG)
        assert waiting.tokens == alone([*LONG, 1], 5)


def test_a_slow_write_delays_no_answer(tmp_path: Path, monkeypatch):
    with slow(monkeypatch, "save") as disk, stored(tmp_path) as made:
        said(made, LONG)
        said(made, OTHER)  # LONG lost its slot
        assert disk.asked.wait(WAIT)
        for i in range(3):
            said(made, [i, *OTHER])
        # Its cells still wait to be written, so they are taken from there.
        assert said(made, [*LONG, 1]).stats.cached_tokens >= len(LONG)
        assert not files(tmp_path)
        disk.goes.set()
    assert len(files(tmp_path)) >= 4


def test_what_does_not_fit_is_dropped_and_counted(tmp_path: Path, monkeypatch, caplog):
    with (
        slow(monkeypatch, "save") as disk,
        stored(tmp_path, keeping={"waiting": 1}) as made,
    ):
        said(made, LONG)
        said(made, OTHER)  # LONG is written
        assert disk.asked.wait(WAIT)
        said(made, [4, *LONG])  # OTHER is dropped
        assert made.dropped_files == 1
        assert "the disk is too slow" in caplog.text
        assert said(made, [*OTHER, 1]).stats.cached_tokens < 5
        disk.goes.set()
        assert made._store is not None
        made._store.drain()
        assert said(made, [*LONG, 1]).stats.cached_tokens >= len(LONG)


def test_all_is_written_at_the_end(tmp_path: Path, monkeypatch):
    """There the server waits: nothing is dropped."""
    with slow(monkeypatch, "save") as disk:
        with stored(tmp_path, Shared(3), keeping={"waiting": 1}) as made:
            for i in range(3):
                said(made, [i, *LONG])
            threading.Timer(0.05, disk.goes.set).start()
        assert made.dropped_files == 0
    assert len(files(tmp_path)) == 3


def test_a_read_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch):
    with stored(tmp_path) as made:
        answer(made, LONG)
    with (
        slow(monkeypatch, "read") as disk,
        stored(tmp_path, keeping={"patience": 0.05}) as made,
    ):
        assert said(made, [*LONG, 1]).stats.cached_tokens == 0
        disk.goes.set()


def test_an_answer_that_waits_for_a_file_can_be_cancelled(tmp_path: Path, monkeypatch):
    with stored(tmp_path) as made:
        answer(made, LONG)
    with slow(monkeypatch, "read") as disk, stored(tmp_path) as made:
        waiting = Client(made, job([*LONG, 1], 5))
        assert disk.asked.wait(WAIT)
        waiting.ticket.cancel()
        ended = waiting.end()
        assert isinstance(ended, Ended)
        assert ended.reason == "cancelled"
        said(made, OTHER)
        disk.goes.set()
        assert said(made, [*LONG, 1]).stats.cached_tokens >= len(LONG)


def test_answers_to_one_prompt_read_its_file_once(tmp_path: Path, monkeypatch):
    with stored(tmp_path) as made:
        answer(made, LONG)
    reads: list[Path] = []
    read = stores.read

    def counted(path: Path, *args: Any, **more: Any) -> Any:
        reads.append(path)
        return read(path, *args, **more)

    monkeypatch.setattr(stores, "read", counted)
    target = Shared(3, copy_cost=1)
    with slow(monkeypatch, "read") as disk, stored(tmp_path, target) as made:
        clients = [Client(made, job([*LONG, 1], 5)) for _ in range(3)]
        assert disk.asked.wait(WAIT)
        disk.goes.set()
        for client in clients:
            ended = client.end()
            assert isinstance(ended, Ended)
            assert client.tokens == alone([*LONG, 1], 5)
            assert ended.stats.cached_tokens >= len(LONG) - 1
    assert len(reads) == 1


def test_a_bug_while_reading_ends_no_thread(tmp_path: Path, monkeypatch, caplog):
    with stored(tmp_path) as made:
        answer(made, LONG)

    def broken(*args: Any, **more: Any) -> Any:
        raise RuntimeError("a bug")

    with stored(tmp_path) as made:
        with monkeypatch.context() as patch:
            patch.setattr(stores, "read", broken)
            assert said(made, [*LONG, 1]).stats.cached_tokens == 0
        assert said(made, OTHER).stats.cached_tokens < 5
        assert said(made, [*LONG, 1]).stats.cached_tokens >= len(LONG)
    assert "a file was not handled" in caplog.text


def test_a_closed_thread_takes_nothing():
    done = list[Path]()
    files_ = FileThread(lambda path: None, lambda path, cells: done.append(path))
    cells = KVSnapshot([1], b"x", None)
    assert files_.write(Path("a"), cells)
    files_.close()
    files_.close()
    assert done == [Path("a")]
    assert not files_.write(Path("b"), cells)
    assert files_.dropped == 1
    assert files_.read(Path("a")).is_done
