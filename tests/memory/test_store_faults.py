"""Stores that are killed, full, read-only, damaged, or used by several at once."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import pytest

from edgecs.errors import ConfigError
from edgecs.memory import database as module
from edgecs.memory import index, store
from edgecs.memory.database import FILE, Unreadable
from edgecs.memory.documents import Documents
from edgecs.memory.store import UserStore
from tests.memory.killed import text_of
from tests.rooms import ROOT

ONE = "ab" * 32
posix = pytest.mark.skipif(os.name != "posix", reason="it needs Unix")


def opened(folder: Path) -> UserStore:
    return UserStore(folder, ONE, 50_000)


def add(memory: UserStore, *numbers: int) -> None:
    for number in numbers:
        text, tokens = text_of(number)
        memory.add("answer", "m", text, tokens)


def finds(memory: UserStore, number: int) -> bool:
    _, tokens = text_of(number)
    match = memory.match(tokens[:20].tolist(), 5)
    return match is not None and match.tokens == tokens[20:25].tolist()


def script(text: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    before = (
        "import sys\n"
        "from pathlib import Path\n"
        "from edgecs.errors import ConfigError\n"
        "from edgecs.memory import index\n"
        "from tests.memory.test_store_faults import add, finds, opened\n"
        "folder = Path(sys.argv[1])\n"
    )
    return subprocess.run(
        [sys.executable, "-c", before + text, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )


@posix
def test_a_killed_process_loses_at_most_the_answer_it_was_writing(tmp_path: Path):
    kills = [str(tmp_path), "100", "1"]
    command = [sys.executable, "-m", "tests.memory.killed", *kills]
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == 100
    assert found["texts"] >= 100
    assert found["problems"] == []


def test_processes_add_and_search_at_once(tmp_path: Path):
    text = (
        "index._IN_FILE = 500\n"
        "with opened(folder) as memory:\n"
        "    for number in range(int(sys.argv[2]), 120, 3):\n"
        "        add(memory, number)\n"
        "        memory.refresh()\n"
        "        assert finds(memory, number), number\n"
    )
    with ThreadPoolExecutor() as threads:
        for done in threads.map(lambda n: script(text, tmp_path, n), range(3)):
            assert done.returncode == 0, done.stderr
    with opened(tmp_path) as memory:
        assert len(memory.documents.all()) == 120
        assert all(finds(memory, number) for number in range(120))


@posix
def test_others_cannot_read_the_texts(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(index, "_IN_FILE", 1)
    before = os.umask(0)
    try:
        with opened(tmp_path / "a" / "memory") as memory:
            add(memory, 1, 2)
            for path in (tmp_path / "a" / "memory").rglob("*"):
                mode = stat.S_IMODE(path.stat().st_mode)
                assert mode == (0o700 if path.is_dir() else 0o600), path
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "memory").stat().st_mode) == 0o700


@posix
def test_a_database_that_others_could_read_no_longer_is(tmp_path: Path):
    with opened(tmp_path):
        pass
    (tmp_path / FILE).chmod(0o644)
    with opened(tmp_path):
        assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


_AS_NOBODY = """
import os
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
"""


@posix
def test_a_folder_that_cannot_be_written_is_read(tmp_path: Path):
    folder = tmp_path / "memory"
    with opened(folder) as memory:
        add(memory, 1, 2)
    if os.geteuid() == 0:  # root may write everywhere
        for path in (*folder.rglob("*"), folder):
            os.chown(path, 65534, 65534)
        for above in (tmp_path, *tmp_path.parents):
            if above.stat().st_mode & 0o005 != 0o005 and above.stat().st_uid == 0:
                above.chmod(above.stat().st_mode | 0o055)
    (folder / FILE).chmod(0o400)
    folder.chmod(0o500)
    done = script(
        _AS_NOBODY + "with opened(folder) as memory:\n"
        "    assert memory.read_only\n"
        "    assert finds(memory, 1)\n"
        "    memory.refresh()\n"
        "    assert memory.read(lambda text: 1 / 0) == (0, 0)\n"
        "    try:\n"
        "        add(memory, 3)\n"
        "    except ConfigError as error:\n"
        "        print(error)\n",
        folder,
    )
    folder.chmod(0o700)
    assert done.returncode == 0, done.stderr
    assert "cannot be used" in done.stdout
    assert "readonly" in done.stdout


@posix
def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path):
    folder = tmp_path / "home"
    folder.mkdir()
    if os.geteuid() == 0:
        for above in (folder, *folder.parents):
            if above.stat().st_mode & 0o005 != 0o005 and above.stat().st_uid == 0:
                above.chmod(above.stat().st_mode | 0o055)
    folder.chmod(0o555)
    done = script(
        _AS_NOBODY + "try:\n"
        "    opened(folder / 'memory')\n"
        "except ConfigError as error:\n"
        "    print(error)\n",
        folder,
    )
    folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert "Permission denied" in done.stdout
    assert "check the rights of the folder" in done.stdout


@posix
@pytest.mark.parametrize("most", [1 << 16, 1 << 18])
def test_a_full_disk_keeps_what_was_stored(tmp_path: Path, most: int):
    done = script(
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "index._IN_FILE = 500\n"
        "with opened(folder) as memory:\n"
        "    add(memory, 0)\n"
        f"    resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))\n"
        "    number = 1\n"
        "    try:\n"
        "        while number < 1000:\n"
        "            add(memory, number)\n"
        "            number += 1\n"
        "    except ConfigError as error:\n"
        "        print(number, error)\n"
        "    assert all(finds(memory, n) for n in range(number))\n"
        "    assert not finds(memory, number)\n",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    number, _, said = done.stdout.partition(" ")
    assert "cannot be used" in said
    with opened(tmp_path) as memory:
        assert all(finds(memory, n) for n in range(int(number)))
        add(memory, int(number))
        assert finds(memory, int(number))


def test_an_index_that_cannot_be_written_is_in_memory(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(index, "_IN_FILE", 1)

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index, "written", full)
    with opened(tmp_path) as memory:
        add(memory, *range(20))
        assert all(finds(memory, n) for n in range(20))


def test_a_database_of_another_program_is_refused_and_kept(tmp_path: Path):
    db = sqlite3.connect(tmp_path / FILE)
    db.execute("CREATE TABLE mine (x)")
    db.commit()
    db.close()
    before = (tmp_path / FILE).read_bytes()
    for use in (opened, store.clear):
        with pytest.raises(
            ConfigError, match="of another program: give another folder"
        ):
            use(tmp_path)
    assert (tmp_path / FILE).read_bytes()[100:] == before[100:]


def test_a_database_of_a_later_version_is_refused_until_it_is_cleared(tmp_path: Path):
    with opened(tmp_path) as memory:
        add(memory, 1)
    db = sqlite3.connect(tmp_path / FILE)
    db.execute(f"PRAGMA user_version = {module._VERSION + 1}")
    db.close()
    with pytest.raises(Unreadable, match="has version 2 .* reads version 1: update"):
        opened(tmp_path)
    assert store.clear(tmp_path) is None
    with opened(tmp_path) as memory:
        assert not finds(memory, 1)


def test_what_is_no_database_is_a_sentence(tmp_path: Path):
    (tmp_path / FILE).write_bytes(b"no database at all, but a long text" * 100)
    with pytest.raises(Unreadable, match="not a database.*memory clear"):
        opened(tmp_path)
    assert store.clear(tmp_path) is None
    with opened(tmp_path) as memory:
        add(memory, 1)
        assert finds(memory, 1)


@posix
def test_a_pipe_in_place_of_the_database_does_not_block(tmp_path: Path):
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(ConfigError, match="not a regular file"):
        opened(tmp_path)


def test_a_database_that_is_being_written_is_waited_for_and_not_deleted(
    tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(module, "_WAITS", 0.01)
    with opened(tmp_path) as memory:
        add(memory, 1)
    db = sqlite3.connect(tmp_path / FILE)
    db.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ConfigError, match="another process is writing"):
        store.clear(tmp_path)
    db.rollback()
    db.close()
    with opened(tmp_path) as memory:
        assert finds(memory, 1)


def mutated(path: Path, random: Random) -> None:
    data = bytearray(path.read_bytes())
    kind = random.randrange(4)
    if kind == 0:
        data = data[: random.randrange(len(data))]
    elif kind == 1:
        data += random.randbytes(random.randrange(1, 5000))
    for _ in range(random.choice((0, 1, 10, 1000)) if kind < 2 else 20):
        if data:
            data[random.randrange(len(data))] = random.randrange(256)
    path.write_bytes(data)


@pytest.mark.parametrize("what", [FILE, "segment"])
def test_damaged_files_are_found_out_or_give_other_proposals(
    tmp_path: Path, monkeypatch, what: str
):
    monkeypatch.setattr(index, "_IN_FILE", 1)
    with opened(tmp_path) as memory:
        add(memory, *range(30))
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    readable = 0
    for case in range(30):
        for path in tmp_path.rglob("*"):
            if path.is_file():
                path.unlink()
        for path, data in files.items():
            path.write_bytes(data)
        random = Random(case)
        mutated(random.choice([p for p in files if p.name.endswith(what)]), random)
        try:
            with opened(tmp_path) as memory:
                for number in range(35):
                    _, tokens = text_of(number)
                    match = memory.match(tokens[:20].tolist(), 9)
                    if match:
                        assert len(match.tokens) <= 9
                        assert all(0 <= token < 50_000 for token in match.tokens)
                memory.documents.all()
                memory.documents.containing("text 2")
                memory.read(lambda text: np.zeros(len(text), np.int32))
                add(memory, 40)
                assert finds(memory, 40)
                readable += 1
        except ConfigError as error:
            told = str(error)
        else:
            told = ""
        if told:
            assert told.isprintable()
            if "another program" in told:
                (tmp_path / FILE).unlink()
            assert store.clear(tmp_path) in (None, *range(50))
        with opened(tmp_path) as memory:
            add(memory, 41)
    assert readable > (25 if what == "segment" else 0)


def test_a_text_with_odd_characters_is_stored(tmp_path: Path):
    with Documents(tmp_path) as documents:
        number = documents.add("file", "\udc80/\0", "a\0b\ud800 \N{SNOWMAN}")
        assert documents.text(number) == "a\ufffdb? \N{SNOWMAN}"
        assert documents.all()[0].source == "?/\ufffd"
        assert documents.containing("\N{SNOWMAN}") == [number]
        assert documents.containing("100%") == []
