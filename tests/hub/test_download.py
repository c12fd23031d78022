"""Downloads: resumed, checked, atomic; a server on this machine is the network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgecs.errors import FetchError, ModelError
from edgecs.hub.download import fetch_file, split_parts
from edgecs.hub.store import quiet
from tests.hub.fake_wheel import DATA, SHA
from tests.network import Server


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


@pytest.mark.parametrize("count", ["00000", "00501", "99999"])
def test_the_parts_of_a_split_model_are_bounded(count: str):
    with pytest.raises(ModelError, match=rf"split into {int(count)} files by its name"):
        split_parts(f"m-00001-of-{count}.gguf")


def test_all_parts_of_a_split_model_are_named():
    assert len(split_parts("m-00001-of-00500.gguf")) == 500
    assert split_parts("m-00002-of-00500.gguf") == ["m-00002-of-00500.gguf"]
