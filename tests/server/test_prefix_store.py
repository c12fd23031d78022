"""Cells on disk: a restored conversation goes on as if it had kept its slot."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.chat.archive import Owner
from edgecs.server.job import Ended
from edgecs.server.prefix_store import LEAST, PrefixStore
from edgecs.server.scheduler import Scheduler
from tests.server.test_scheduler import VOCAB, Client, Shared, alone, job, scheduler

OWNER = Owner("fake", "f" * 32, "{}", VOCAB)
LONG = [i % 4 for i in range(200)]
OTHER = [(i * i) % 5 for i in range(150)]
MOST = 1 << 20


@contextmanager
def stored(
    folder: Path,
    target: Shared | None = None,
    owner: Owner = OWNER,
    most: int = MOST,
    **more: object,
) -> Iterator[Scheduler]:
    """A scheduler with a store, both closed at the end."""
    target = target or Shared(1)
    store = PrefixStore(
        target, folder, "fake", owner, most=most, any_prefix=target.uniform
    )
    try:
        with scheduler(target, store=store, **more) as made:
            yield made
    finally:
        store.close()


def answer(made: Scheduler, prompt: list[int], most: int = 5) -> int:
    """Checks an answer; returns the number of cached tokens."""
    client = Client(made, job(prompt, most))
    ended = client.end()
    assert isinstance(ended, Ended)
    assert client.tokens == alone(prompt, most)
    return ended.stats.cached_tokens


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*"))


def test_a_conversation_that_lost_its_slot_is_restored(tmp_path: Path):
    with stored(tmp_path) as made:
        assert answer(made, LONG) == 0
        assert answer(made, OTHER) < 5
        assert answer(made, [*LONG, 1, 2]) >= len(LONG)
        assert answer(made, [*OTHER, 1, 2]) >= len(OTHER)


def test_a_new_server_goes_on(tmp_path: Path):
    with stored(tmp_path, Shared(2)) as made:
        answer(made, LONG)
        answer(made, OTHER)
    assert len(files(tmp_path)) == 2
    with stored(tmp_path) as made:
        assert answer(made, [*OTHER, 3]) >= len(OTHER)
        assert answer(made, [*LONG, 3]) >= len(LONG)


def test_a_longer_conversation_replaces_its_beginning(tmp_path: Path):
    talk = LONG
    for _ in range(3):
        with stored(tmp_path) as made:
            answer(made, talk)
        talk = [*talk, *alone(talk, 5), 1, 2]
    assert len(files(tmp_path)) == 1


def test_short_conversations_are_not_saved(tmp_path: Path):
    with stored(tmp_path) as made:
        answer(made, [1] * (LEAST - 10))
    assert not files(tmp_path)


def test_without_uniform_rows_only_whole_conversations_go_on(tmp_path: Path):
    """Cells in the middle of one may depend on how its prompts were split."""
    target = Shared(1)
    target.uniform = False
    with stored(tmp_path, target) as made:
        answer(made, LONG)
    target = Shared(1)
    target.uniform = False
    with stored(tmp_path, target) as made:
        assert answer(made, [*LONG[:150], 4]) == 0
    whole = [*LONG, *alone(LONG, 5)]
    for prompt, cached in (([*LONG, 4, 4], 0), ([*whole, 1], len(whole) - 1)):
        target = Shared(1)
        target.uniform = False
        with stored(tmp_path, target) as made:
            assert answer(made, prompt) == cached


def test_the_least_recently_used_files_make_room(tmp_path: Path):
    prompts = [[i, *LONG] for i in range(4)]
    size = 0
    for i, prompt in enumerate(prompts):
        with stored(tmp_path, most=3 * size or MOST) as made:
            answer(made, prompt)
        size = size or files(tmp_path)[0].stat().st_size
        for path in files(tmp_path):  # so that the order does not depend on the clock
            used = path.stat().st_mtime
            os.utime(path, (used - 10, used - 10))
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 3 * size
        assert len(files(tmp_path)) == min(i + 1, 3)
    with stored(tmp_path) as made:
        assert answer(made, [*prompts[0], 1]) < len(LONG)
        assert answer(made, [*prompts[3], 1]) > len(LONG)


def test_a_conversation_larger_than_the_cache_is_not_saved(tmp_path: Path, caplog):
    with stored(tmp_path) as made:
        answer(made, OTHER)
    with stored(tmp_path, most=500) as made:
        answer(made, LONG)
    assert "--prefix-cache-size" in caplog.text
    assert len(files(tmp_path)) == 1


def flipped(data: bytes) -> bytes:
    middle = len(data) // 3
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [
        flipped,
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"a file of another program",
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["at start", "later"])
def test_a_damaged_file_is_a_miss(tmp_path: Path, caplog, spoil, late: bool):
    with stored(tmp_path) as made:
        answer(made, LONG)
    (path,) = files(tmp_path)
    data = path.read_bytes()
    if not late:
        path.write_bytes(spoil(data))
    with stored(tmp_path) as made:
        path.write_bytes(spoil(data))
        assert answer(made, [*LONG, 1]) == 0
        assert answer(made, OTHER) < 5
        assert answer(made, [*LONG, 1]) == len(LONG)  # saved again
        lines = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert len(lines) == 1
        assert path.name in lines[0].getMessage()


def test_a_file_that_has_gone_is_a_miss(tmp_path: Path, caplog):
    with stored(tmp_path) as made:
        answer(made, LONG)
    with stored(tmp_path) as made:
        files(tmp_path)[0].unlink()
        assert answer(made, [*LONG, 1]) == 0
    assert not caplog.records


@pytest.mark.parametrize(
    "owner",
    [
        Owner("fake", "0" * 32, "{}", VOCAB),
        Owner("fake", OWNER.fingerprint, '{"kernels": "other"}', VOCAB),
    ],
    ids=["other weights", "other options"],
)
def test_cells_of_another_model_are_not_used(tmp_path: Path, owner: Owner):
    with stored(tmp_path) as made:
        answer(made, LONG)
    with stored(tmp_path, owner=owner) as made:
        assert answer(made, [*LONG, 1]) == 0


def test_cells_that_the_engine_rejects_are_read_again(tmp_path: Path, caplog):
    class Rejecting(Shared):
        def restore(self, cells, sequence=0):
            super().restore(cells._replace(data=b""), sequence)
            return False

    with stored(tmp_path) as made:
        answer(made, LONG)
    with stored(tmp_path, Rejecting(1)) as made:
        assert answer(made, [*LONG, 1]) == 0
    assert "the engine rejects the cells" in caplog.text


def test_a_full_disk_is_a_warning(tmp_path: Path, caplog, monkeypatch):
    def full(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("edgecs.chat.archive.zipfile.ZipFile", full)
    with stored(tmp_path) as made:
        assert answer(made, LONG) == 0
        assert answer(made, OTHER) < 5
        assert answer(made, [*LONG, 1]) < 5
    assert "No space left on device" in caplog.text
    assert not files(tmp_path)


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path: Path, caplog):
    (tmp_path / "file").write_text("")
    with stored(tmp_path / "file") as made:
        answer(made, LONG)
    assert "prefix cache: " in caplog.text


def test_the_files_are_private(tmp_path: Path):
    with stored(tmp_path) as made:
        answer(made, LONG)
    (path,) = files(tmp_path)
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from([LONG, OTHER, [*LONG[:120], *OTHER]]),
            st.integers(1, 200),
            st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=90),
            st.booleans(),
        ),
        min_size=1,
        max_size=7,
    ),
    st.integers(1, 3),
    st.sampled_from([None, 20]),
)
@settings(max_examples=25)
def test_ids_do_not_depend_on_the_store(requests, slots, copy_cost):
    with TemporaryDirectory() as folder:
        while requests:
            with stored(Path(folder), Shared(slots, copy_cost=copy_cost)) as made:
                clients = []
                while requests:
                    base, cut, more, restarts = requests.pop()
                    prompt = [*base[:cut], *more]
                    clients.append((prompt, Client(made, job(prompt, 6))))
                    if restarts:
                        break
                for prompt, client in clients:
                    ended = client.end()
                    assert isinstance(ended, Ended)
                    assert client.tokens == alone(prompt, 6)
