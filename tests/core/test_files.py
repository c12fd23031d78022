"""Files that are whole or not there, and what is refused before it is opened."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.core.files import replacing, sweep, write_whole
from edgecs.core.reading import read_bounded
from edgecs_convert.folders import whole_folder


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@given(st.lists(st.binary(max_size=64), min_size=1, max_size=4))
def test_the_last_write_stays_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, writes: list[bytes]
):
    path = tmp_path_factory.mktemp("files") / "data"
    for data in writes:
        write_whole(path, data)
        assert read_bounded(path, 64) == data
    assert names(path.parent) == ["data"]


def test_a_write_that_fails_keeps_what_was_there(tmp_path: Path):
    path = tmp_path / "data"
    write_whole(path, b"old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.write("not bytes")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["data"]


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path):
    path = tmp_path / "talk.edgecs"
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from edgecs.core.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, path], check=False)
    (left,) = names(tmp_path)
    assert left != path.name
    alive = tmp_path / f".talk.edgecs.{os.getpid()}-00000000.part"
    other = tmp_path / left.replace("talk", "walk")
    for kept in (alive, other):
        kept.touch()
    write_whole(path, b"whole")
    assert names(tmp_path) == sorted([path.name, alive.name, other.name])


def test_a_part_of_a_process_whose_number_another_one_has_goes_too(tmp_path: Path):
    left = tmp_path / f".talk.edgecs.{os.getpid()}-00000000.part"
    left.touch()
    os.utime(left, (0, 0))  # before this process began
    write_whole(tmp_path / "talk.edgecs", b"whole")
    assert names(tmp_path) == ["talk.edgecs"]


def test_a_folder_can_be_swept_of_the_parts_of_all_its_files(tmp_path: Path):
    for name in (".one.json.99999999-00000000.part", ".2.99999999-00000000.part"):
        (tmp_path / name).touch()
    kept = [f".one.{os.getpid()}-00000000.part", "one.part", ".one.part", "one.json"]
    for name in kept:
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert names(tmp_path) == sorted(kept)
    sweep(tmp_path / "nowhere")


def test_a_folder_that_was_being_filled_goes_with_the_next_one(tmp_path: Path):
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from edgecs_convert.folders import whole_folder\n"
        "def fill(folder):\n"
        "    (folder / 'half').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "whole_folder(Path(sys.argv[1]), fill)\n"
    )
    out = tmp_path / "made"
    subprocess.run([sys.executable, "-c", script, out], check=False)
    assert len(names(tmp_path)) == 1
    assert not out.exists()
    whole_folder(out, lambda folder: (folder / "file").touch())
    assert names(tmp_path) == ["made"]
    assert names(out) == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such modes")
def test_private_files_are_for_their_owner_alone(tmp_path: Path):
    before = os.umask(0o022)
    try:
        for private, mode in ((True, 0o600), (False, 0o644)):
            write_whole(tmp_path / "x", b"", private=private)
            assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode
    finally:
        os.umask(before)
