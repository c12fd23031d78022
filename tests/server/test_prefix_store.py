"""Cells on disk: a restored conversation goes on as if it had kept its slot."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgecs.chat.archive import Owner, checksum, read, save
from edgecs.engines.llama.random_gguf import write_random_gguf
from edgecs.runtime.loader import load
from edgecs.server.batching.job import Ended
from edgecs.server.batching.scheduler import Scheduler
from edgecs.server.prefixes.key import seal_of
from edgecs.server.prefixes.store import LEAST, PrefixStore, open_store
from tests.server.servers import OPTIONS
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
    keeping: dict[str, Any] | None = None,
    **more: object,
) -> Iterator[Scheduler]:
    """A scheduler with a store, both closed at the end. keeping: options of it."""
    target = target or Shared(1)
    store = PrefixStore(
        target,
        folder,
        "fake",
        owner,
        most=most,
        any_prefix=target.uniform,
        **keeping or {},
    )
    try:
        with scheduler(target, store=store, **more) as made:
            yield made
    finally:
        store.close()


def answer(made: Scheduler, prompt: list[int], most: int = 5, **more: object) -> int:
    """Checks an answer; returns the number of cached tokens."""
    client = Client(made, job(prompt, most, **more))
    ended = client.end()
    assert isinstance(ended, Ended)
    assert client.tokens == alone(prompt, most)
    assert made._store is not None
    made._store.drain()
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


def test_private_conversations_are_neither_saved_nor_restored(tmp_path: Path):
    private = {"caches": False}
    with stored(tmp_path) as made:
        answer(made, LONG)
        answer(made, OTHER, **private)  # it takes the slot: LONG is saved
    assert len(files(tmp_path)) == 1
    with stored(tmp_path) as made:
        assert answer(made, [*LONG, 1], **private) == 0
        assert answer(made, [*LONG, 1]) >= len(LONG)


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


def flipped(data: bytes, at: int | None = None, bit: int = 0) -> bytes:
    at = len(data) // 3 if at is None else at
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


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
        assert made.refused_files == 1


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

    monkeypatch.setattr("edgecs.chat.archive.zipfile.ZipFile.writestr", full)
    with stored(tmp_path) as made:
        assert answer(made, LONG) == 0
        assert answer(made, OTHER) < 5
        assert answer(made, [*LONG, 1]) < 5
    lines = [one.getMessage() for one in caplog.records]
    assert len(lines) == 3  # one a conversation that lost its cells
    assert all("No space left on device" in line for line in lines)
    assert not files(tmp_path)
    assert not [*(tmp_path / "fake").iterdir()], "a part of a file is left"


def test_a_disk_that_is_full_when_the_secret_is_made_is_a_warning(
    tmp_path: Path, caplog, monkeypatch
):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("edgecs.core.files.os.fsync", full)
    with stored(tmp_path) as made:
        assert answer(made, LONG) == 0
    assert "No space left on device" in caplog.text
    assert not (tmp_path / ".key").exists()


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
    assert (tmp_path / ".key").stat().st_mode & 0o777 == 0o600


class Trusting(Shared):
    """Takes any state, and counts how often it is given one."""

    given = 0

    def restore(self, cells, sequence=0):
        self.given += 1
        return super().restore(cells, sequence)


def spoilt(how: tuple[str, int, int], data: bytes, other: bytes) -> bytes:
    kind, at, bit = how
    if kind == "flip":
        return flipped(data, at % len(data), bit)
    if kind == "cut":
        return data[: at % len(data)]
    if kind == "random":
        return np.random.default_rng(at).bytes(at % 5000)
    at %= len(data)
    return data[:at] + other[at:]  # two files of one server


@given(
    st.tuples(
        st.sampled_from(["flip", "cut", "random", "mix"]),
        st.integers(0, 1 << 20),
        st.integers(0, 7),
    ),
    st.booleans(),
)
@settings(max_examples=150)
def test_no_change_of_a_file_changes_an_answer(how, late):
    """It is used only if what is read of it has not changed."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        with stored(folder) as made:
            answer(made, OTHER)
            answer(made, LONG)
        data = {path: path.read_bytes() for path in files(folder)}
        path, other = sorted(data, key=lambda path: len(data[path]), reverse=True)
        other.unlink()
        new = spoilt(how, data[path], data[other])
        assume(new != data[path])
        if not late:
            path.write_bytes(new)
        target = Trusting(1)
        with stored(folder, target) as made:
            if late:
                path.write_bytes(new)
            cached = answer(made, [*LONG, 1])
            if how[0] == "mix":  # it may be the other file, in another place
                return
            assert (cached >= len(LONG)) == (target.given > 0)
            assert made.refused_files == (not cached)
            assert path.exists() == (cached > 0)


@pytest.mark.parametrize("signed", [False, True], ids=["plain", "another secret"])
def test_a_forged_file_is_not_given_to_the_engine(tmp_path: Path, caplog, signed: bool):
    """It is in the right form, for the right model, by someone without the secret."""
    with stored(tmp_path / "theirs") as made:
        answer(made, LONG)
    (path,) = files(tmp_path / "theirs")
    read_of = seal_of(tmp_path / "theirs")
    cells = read(path, OWNER, seal=read_of).cells
    assert cells is not None
    forged = cells._replace(data=cells.data[::-1])
    place = tmp_path / "ours" / "fake" / path.name
    save(place, [], OWNER, forged, seal=read_of if signed else checksum)
    target = Trusting(1)
    with stored(tmp_path / "ours", target) as made:
        assert not place.exists()
        assert answer(made, [*LONG, 1]) == 0
        assert made.refused_files == 1
    assert target.given == 0
    assert len(caplog.records) == 1


def test_a_secret_that_others_may_know_is_replaced(tmp_path: Path, caplog):
    with stored(tmp_path) as made:
        answer(made, LONG)
    key = tmp_path / ".key"
    before = key.read_bytes()
    for spoil in (
        lambda: key.chmod(0o640),
        lambda: key.write_bytes(b"x" * 31),
        lambda: (key.unlink(), key.symlink_to(tmp_path / "elsewhere")),
    ):
        caplog.clear()
        spoil()
        with stored(tmp_path) as made:
            assert answer(made, [*LONG, 1]) == 0
        assert "is not private: replaced" in caplog.text
        assert not key.is_symlink()
        assert key.stat().st_mode & 0o777 == 0o600
        assert key.read_bytes() != before
        before = key.read_bytes()


def test_servers_with_one_folder_have_one_secret(tmp_path: Path):
    with ThreadPoolExecutor(8) as pool:
        seals = [*pool.map(lambda _: seal_of(tmp_path), range(32))]
    assert len({seal(b"x") for seal in seals}) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {".key", ".key.lock"}
    (tmp_path / ".key").chmod(0o644)
    with ThreadPoolExecutor(8) as pool:
        others = [*pool.map(lambda _: seal_of(tmp_path), range(32))]
    assert len({seal(b"x") for seal in others}) == 1
    assert others[0](b"x") != seals[0](b"x")


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [write_random_gguf(folder / f"{i}.gguf", seed=i) for i in range(2)]


@contextmanager
def served(path: Path, folder: Path | None) -> Iterator[Scheduler]:
    """A slot of llama.cpp with a store; None: without."""
    with load(path, replace(OPTIONS, sequences=1)) as loaded, ExitStack() as closing:
        session = closing.enter_context(loaded.session())
        store = open_store(loaded, folder, MOST << 4) if folder else None
        made = Scheduler([session], store=store, reads=64)
        try:
            yield made
        finally:
            made.close()
            if store:
                store.close()


def said(made: Scheduler, prompt: list[int]) -> tuple[list[int], int]:
    """The ids of an answer, and how many tokens of the prompt were cached."""
    client = Client(made, job(prompt, 8))
    ended = client.end()
    assert isinstance(ended, Ended)
    return client.tokens, ended.stats.cached_tokens


def test_llama_cpp_gets_no_state_of_another_model(
    two_models: list[Path], tmp_path: Path
):
    prompt = [i * 7 % 256 for i in range(180)]
    expected = []
    for path in two_models:
        with served(path, None) as made:
            expected.append(said(made, [*prompt, 3])[0])
        with served(path, tmp_path) as made:
            said(made, prompt)
    one, two = (next(tmp_path.glob(f"{i}-*/*.cells")) for i in range(2))
    first, second = one.read_bytes(), two.read_bytes()
    with served(two_models[0], tmp_path) as made:  # found before they are swapped
        one.write_bytes(second)
        assert said(made, [*prompt, 3]) == (expected[0], 0)
        assert made.refused_files == 1
    two.write_bytes(first)
    with served(two_models[1], tmp_path) as made:  # found afterwards: not its own
        assert said(made, [*prompt, 3]) == (expected[1], 0)


def test_damaged_states_of_llama_cpp_change_no_answer(
    two_models: list[Path], tmp_path: Path
):
    prompt = [i * 7 % 256 for i in range(180)]
    with served(two_models[0], tmp_path) as made:
        said(made, prompt)
    (path,) = files(tmp_path)
    data = path.read_bytes()
    with served(two_models[0], None) as made:
        expected = said(made, [*prompt, 3])[0]
    with served(two_models[0], tmp_path) as made:
        assert said(made, [*prompt, 3]) == (expected, len(prompt))
    random = np.random.default_rng(1)
    for i in range(12):
        path = files(tmp_path)[0]
        with served(two_models[0], tmp_path) as made:
            at = int(random.integers(len(data)))
            path.write_bytes(flipped(data, at, i % 8) if i % 3 else data[:at])
            assert said(made, [*prompt, 3])[0] == expected


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
