"""Fingerprints tell model files apart without reading all of them."""

from __future__ import annotations

import errno
import io
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.calibrate.profile import fingerprint
from edgecs.errors import ModelError

MIB = 1 << 20
BIG = 6 * MIB + 12_345  # bytes; its middle is sampled


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model.gguf"
    path.write_bytes(random.Random(1).randbytes(BIG))
    return path


def changed(path: Path, start: int, length: int) -> str:
    """The fingerprint with other bytes there; the file is as before afterwards."""
    with path.open("r+b", buffering=0) as file:
        file.seek(start)
        before = file.read(length)
        file.seek(start)
        file.write(bytes(b ^ 1 for b in before))
        try:
            return fingerprint(path)
        finally:
            file.seek(start)
            file.write(before)


def test_a_fingerprint_is_32_hex_digits_whatever_the_name(model, tmp_path):
    first = fingerprint(model)
    assert len(first) == 32
    assert set(first) <= set("0123456789abcdef")
    for name in ("other.bin", "m-00002-of-00002.gguf", "m-00001-of-00001.gguf"):
        (tmp_path / name).write_bytes(model.read_bytes())
        assert fingerprint(tmp_path / name) == first


@given(
    where=st.sampled_from([0, 1, MIB - 1, BIG - MIB, BIG - 1])
    | st.integers(0, MIB - 1)
    | st.integers(BIG - MIB, BIG - 1)
)
@settings(max_examples=30)
def test_every_byte_of_either_end_counts(model, where):
    assert changed(model, where, 1) != fingerprint(model)


@pytest.mark.parametrize("sample", range(1, 17))
@pytest.mark.parametrize("byte", [0, (64 << 10) - 1])
def test_samples_are_spread_evenly(model, sample, byte):
    where = BIG * sample // 17 + byte
    assert changed(model, where, 1) != fingerprint(model)


@given(start=st.integers(0, BIG - BIG // 17 - 1))
@settings(max_examples=30)
def test_no_long_stretch_goes_unseen(model, start):
    assert changed(model, start, BIG // 17 + 1) != fingerprint(model)


def test_the_size_counts_where_all_samples_are_the_same(tmp_path):
    path = tmp_path / "zeros"
    seen = set()
    for size in (0, 1, MIB, 2 * MIB, 4 * MIB, 4 * MIB + 1, 64 * MIB):
        path.write_bytes(b"")
        os.truncate(path, size)
        seen.add(fingerprint(path))
    assert len(seen) == 7


@given(data=st.binary(min_size=1, max_size=300), where=st.integers(0, 299))
def test_every_byte_of_a_small_file_counts(tmp_path_factory, data, where):
    path = tmp_path_factory.mktemp("small") / "m.gguf"
    path.write_bytes(data)
    assert changed(path, where % len(data), 1) != fingerprint(path)
    assert changed(path, 0, 0) == fingerprint(path)


def test_little_is_read_of_a_large_file(tmp_path, monkeypatch):
    path, read = tmp_path / "m.gguf", []

    class Counting(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            data = super().read(-1 if size is None else size)
            read.append(len(data))
            return data

    path.write_bytes(b"")
    os.truncate(path, 64 * MIB)
    monkeypatch.setattr(Path, "open", lambda self, mode: Counting(self, mode))
    fingerprint(path)
    assert sum(read) == 2 * MIB + 16 * (64 << 10)


def test_a_split_model_is_all_its_parts(tmp_path):
    first, second = (tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2))
    first.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="there is no file .*00002-of-00002"):
        fingerprint(first)
    second.write_bytes(b"GGUF tensors")
    assert changed(second, 5, 1) != fingerprint(first)
    before = fingerprint(first)
    second.write_bytes(b"GGUF tensorS")
    assert fingerprint(first) != before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A drafter's folder."""
    path = tmp_path / "drafter"
    (path / "sub").mkdir(parents=True)
    (path / "drafter.toml").write_text("window = 64")
    (path / "model.onnx").write_bytes(b"graph")
    (path / "sub" / "data").write_bytes(b"weights")
    return path


def variants(folder: Path) -> Iterator[str]:
    """Fingerprints of the folder, after one change more each time."""
    yield fingerprint(folder)
    (folder / "model.onnx").write_bytes(b"Graph")
    yield fingerprint(folder)
    (folder / "sub" / "data").write_bytes(b"Weights")
    yield fingerprint(folder)
    (folder / "model.onnx").rename(folder / "other.onnx")
    yield fingerprint(folder)
    (folder / "empty").write_bytes(b"")
    yield fingerprint(folder)
    (folder / "drafter.toml").unlink()
    yield fingerprint(folder)


def test_files_and_names_in_a_folder_count(folder):
    assert len(set(variants(folder))) == 6


def test_where_a_folder_lies_does_not_count(folder):
    before = fingerprint(folder)
    assert fingerprint(folder.rename(folder.with_name("elsewhere"))) == before


def test_the_order_in_which_a_folder_is_listed_does_not_count(folder, monkeypatch):
    before, listed = fingerprint(folder), list(folder.rglob("*"))
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: iter(listed[::-1]))
    assert fingerprint(folder) == before


def test_what_cannot_be_read_is_an_error_with_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="there is no file .*gone.gguf: check"):
        fingerprint(tmp_path / "gone.gguf")
    with pytest.raises(ModelError, match="is empty: pass the folder"):
        fingerprint(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ModelError, match="there is no file"):
            fingerprint(tmp_path / "pipe")

    def refuse(*args: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(Path, "open", refuse)
    for path in (tmp_path / "m.gguf", tmp_path):
        with pytest.raises(ModelError, match="cannot be read: Permission denied"):
            fingerprint(path)
