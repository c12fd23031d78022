"""Compiling llama.cpp's RPC backend: what is unpacked, and what is said of failures."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from edgecs.native import rpc_backend
from edgecs.native.compilers import BuildError

GGML = "llama_cpp_python-0.3.36/vendor/llama.cpp/ggml"
NEEDED = {f"{GGML}/{name}": b"// code" for name in rpc_backend._FILES}


def archive(path: Path, files: dict[str, bytes], links: tuple[str, ...] = ()) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    return path


def test_only_what_the_backend_needs_is_unpacked(tmp_path: Path):
    others = {
        "../evil.h": b"",
        "/evil.h": b"",
        f"{GGML}/include/../../../evil.h": b"",
        f"{GGML}/src/ggml-cuda/cuda.cpp": b"",
        f"{GGML}/src/CMakeLists.txt": b"",
        f"{GGML}/include/ggml.h": b"// header",
    }
    links = (f"{GGML}/src/link.h",)
    made = archive(tmp_path / "a.tar.gz", {**NEEDED, **others}, links)
    folder = tmp_path / "inside" / "folder"
    rpc_backend.unpack(made, folder)
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {*rpc_backend._FILES, "include/ggml.h"}
    assert not [*tmp_path.rglob("evil.h")]


@pytest.mark.parametrize("cut", [0, 10, 100])
def test_a_broken_archive_is_an_error(tmp_path: Path, cut: int):
    made = archive(tmp_path / "a.tar.gz", NEEDED)
    made.write_bytes(made.read_bytes()[:cut])
    with pytest.raises(BuildError, match=r"a\.tar\.gz"):
        rpc_backend.unpack(made, tmp_path / "folder")


def test_an_archive_without_the_backend_is_an_error(tmp_path: Path):
    made = archive(tmp_path / "a.tar.gz", {f"{GGML}/include/ggml.h": b""})
    with pytest.raises(BuildError, match=r"has no src/ggml-rpc"):
        rpc_backend.unpack(made, tmp_path / "folder")


def test_an_archive_that_is_too_large_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rpc_backend, "_LARGEST", 10)
    made = archive(tmp_path / "a.tar.gz", NEEDED)
    with pytest.raises(BuildError, match="larger"):
        rpc_backend.unpack(made, tmp_path / "folder")


def test_what_pip_says_is_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(command: list[str], **more: object) -> object:
        said = "Looking\nERROR: no \x1b[31mmatch\n"
        return subprocess.CompletedProcess(command, 1, "", said)

    monkeypatch.setattr(rpc_backend.subprocess, "run", failing)
    monkeypatch.setattr(rpc_backend, "find_compiler", lambda: "c++")
    with pytest.raises(BuildError, match=r"ERROR: no \?\[31mmatch"):
        rpc_backend.compile_backend(tmp_path, tmp_path, "0.3.36", tmp_path)


def test_the_library_of_other_headers_is_another_one(tmp_path: Path):
    (tmp_path / "ggml.h").write_text("one")
    one = rpc_backend.name(tmp_path, "0.3.36")
    assert rpc_backend.find(tmp_path, "0.3.36", tmp_path) is None
    (tmp_path / one).touch()
    assert rpc_backend.find(tmp_path, "0.3.36", tmp_path) == tmp_path / one
    (tmp_path / "ggml.h").write_text("two")
    assert rpc_backend.find(tmp_path, "0.3.36", tmp_path) is None
    assert rpc_backend.find(tmp_path, "0.3.37", tmp_path) is None
