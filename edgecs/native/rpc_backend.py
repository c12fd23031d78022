"""Compile llama.cpp's RPC backend as a library that the installed llama.cpp loads.

The usual builds of llama-cpp-python lack it. ggml loads backends from libraries of
their own (`ggml_backend_load`), and this one consists of two files, so they alone are
compiled, from the sources of the installed version. pip gets these, as it does for an
installation.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from edgecs.native.build import SOURCES, find_compiler, run
from edgecs.native.compilers import BuildError

_PACKAGE = "llama-cpp-python"
# What the backend includes, in the source archive.
_NEEDED = re.compile(
    r"[^/]+/vendor/llama\.cpp/ggml/((?:include|src|src/ggml-rpc)/[^/]+)"
)
_SUFFIXES = (".h", ".hpp", ".cpp")
_FILES = ("src/ggml-rpc/ggml-rpc.cpp", "src/ggml-rpc/transport.cpp")
# chosen: a hundred times the size of ggml's headers.
_LARGEST = 64 << 20  # bytes of all files
_SHOWN = 300  # characters of pip's message
# As ggml's CMakeLists.txt defines them for a backend in a library of its own.
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-pthread", "-DNDEBUG")
_DEFINED = ("GGML_BACKEND_DL", "GGML_BACKEND_BUILD", "GGML_BACKEND_SHARED")


def name(include: Path, version: str) -> str:
    """The library's file name for a version of llama-cpp-python with these headers.

    Raises BuildError.
    """
    digest = hashlib.sha256(repr((platform.machine(), _FLAGS, _DEFINED)).encode())
    try:
        for header in sorted(include.glob("ggml*.h")):
            digest.update(header.name.encode() + b"\0" + header.read_bytes())
    except OSError as error:
        raise BuildError(f"{error.filename} cannot be read") from error
    return f"ggml-rpc-{version}-{digest.hexdigest()[:16]}.so"


def find(include: Path, version: str, folder: Path = SOURCES) -> Path | None:
    """The library, if it is already compiled."""
    try:
        file = folder / name(include, version)
    except BuildError:
        return None
    return file if file.is_file() else None


def compile_backend(
    include: Path,
    libraries: Path,
    version: str,
    folder: Path = SOURCES,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Compile the library into a folder, unless it exists; uses the network.

    include, libraries: folders of the installed llama.cpp's headers and libraries.
    version: of llama-cpp-python. say: called before every step. Raises BuildError.
    """
    made = folder / name(include, version)
    if made.is_file():
        return made
    if sys.platform not in ("linux", "darwin"):
        raise BuildError(f"there is no recipe for {sys.platform}")
    compiler = find_compiler()
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            place = Path(scratch)
            say(f"getting the sources of {_PACKAGE} {version}")
            unpack(_source_archive(version, place), place)
            say("compiling llama.cpp's RPC backend")
            library = place / "made.so"
            run(
                [
                    *(compiler, *_FLAGS),
                    *(f"-D{defined}" for defined in _DEFINED),
                    *(f"-I{place / part}" for part in ("include", "src")),
                    *(place / file for file in _FILES),
                    *(f"-L{libraries}", "-lggml-base", f"-Wl,-rpath,{libraries}"),
                    *("-o", library),
                ]
            )
            library.replace(made)
    except OSError as error:
        raise BuildError(f"{folder} cannot be written: {error.strerror}") from error
    for other in folder.glob("ggml-rpc-*.so"):
        if other != made:
            other.unlink(missing_ok=True)
    return made


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the files that the backend needs. Raises BuildError.

    Nothing else is written, whatever the archive has.
    """
    left, found = _LARGEST, set[str]()
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                match = _NEEDED.fullmatch(member.name)
                if not (match and member.isfile() and match[1].endswith(_SUFFIXES)):
                    continue
                left -= member.size
                content = tar.extractfile(member) if left >= 0 else None
                if content is None:
                    raise BuildError(f"{archive.name} is larger than its sources are")
                target = folder / match[1]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
                found.add(match[1])
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise BuildError(f"{archive.name} is not a source archive: {error}") from error
    if missing := [file for file in _FILES if file not in found]:
        raise BuildError(f"{archive.name} has no {missing[0]}")


def _source_archive(version: str, folder: Path) -> Path:
    """pip's download of the sources. Raises BuildError."""
    # -P and an empty folder: neither Python nor pip may use files of the current one.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--no-input", "--no-binary", _PACKAGE, "--dest", str(folder / "sdist")]
    (folder / "empty").mkdir()
    done = subprocess.run(
        [*command, "--", f"{_PACKAGE}=={version}"],
        capture_output=True,
        text=True,
        errors="replace",
        cwd=folder / "empty",
        stdin=subprocess.DEVNULL,
        env=os.environ,
    )
    found = sorted((folder / "sdist").glob("*.tar.gz"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line]
        said = (lines or done.stderr.splitlines() or ["no reason given"])[-1]
        said = "".join(c if c.isprintable() else "?" for c in said.strip()[:_SHOWN])
        raise BuildError(f"pip cannot get the sources: {said}")
    return found[0]
