"""Compile the kernels against the headers of the installed llama.cpp.

One file is compiled for each instruction set; the set is chosen when a model is loaded.
No flag depends on the processor of the build machine, so a library that was compiled on
another machine can be used. `make` compiles it next to the sources, which is also its
place in a wheel; otherwise it is compiled once, into a folder in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from filelock import FileLock

from edgecs.native.compilers import BuildError, Compilers

SOURCES = Path(__file__).parent
_HEADERS = ("ggml.h", "ggml-backend.h", "ggml-alloc.h")  # included by nodes.cpp
_COMPILERS = ("g++", "clang++", "c++")
_PATIENCE = 600  # seconds for one file: some take 10 on a fast idle machine

_COMMON = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread")
# No fused operations: where compilers fuse differently, columns would differ by width.
_EXACT = ("-ffp-contract=off", "-fno-exceptions", "-fno-rtti")
_AVX2 = ("-O3", "-mavx2", "-mfma", "-mf16c")
_AVX512 = tuple(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni"))
SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx512bf16": (*_AVX2, *_AVX512, "-mavx512bf16"),
        "avx512": (*_AVX2, *_AVX512),
        "avxvnni": (*_AVX2, "-mavxvnni"),
        "avx2": _AVX2,
        "portable": ("-O1",),
    },
    "aarch64": {
        "i8mm": ("-O3", "-march=armv8.2-a+dotprod+i8mm"),
        "dotprod": ("-O3", "-march=armv8.2-a+dotprod"),
        "portable": ("-O1",),
    },
}
"""Compiler flags by processor and instruction set."""


def machine() -> str:
    """The processor architecture, as in `SETS`."""
    name = platform.machine()
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(name, name)


def name(include: Path) -> str:
    """The library's file name for these sources and headers; raises BuildError."""
    digest = hashlib.sha256(repr((machine(), _COMMON, _EXACT, SETS)).encode())
    try:
        for file in [*_sources(), *(include / header for header in _HEADERS)]:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    except OSError as error:
        raise BuildError(f"{error.filename} cannot be read") from error
    return f"edgecs-{digest.hexdigest()[:16]}.so"


def find(include: Path, folder: Path | None) -> Path | None:
    """The library, if it is already compiled: next to the sources, or in a folder."""
    wanted = name(include)
    for place in (SOURCES, folder):
        if place and (place / wanted).is_file():
            return place / wanted
    return None


def compile_library(
    include: Path,
    folder: Path,
    say: Callable[[str], None] = lambda text: None,
    cancel: threading.Event | None = None,
) -> Path:
    """Compile the library into a folder, unless it exists.

    say: called before compiling, which takes one or two minutes, and afterwards.
    cancel: stops compiling when it is set. Raises BuildError, Cancelled.
    """
    wanted = name(include)
    if sys.platform != "linux" or machine() not in SETS:
        raise BuildError(f"there are none for {sys.platform} on {platform.machine()}")
    compiler = find_compiler()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "build.lock"):
            library = folder / wanted
            if not library.is_file():
                say("compiling kernels for this llama.cpp, once: one or two minutes")
                began = time.monotonic()
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    made = compile_into(Path(scratch), include, compiler, cancel=cancel)
                    made.replace(library)
                say(f"compiled the kernels in {time.monotonic() - began:.0f} s")
                _remove_others(library)
            return library
    except OSError as error:
        raise BuildError(f"{folder} cannot be written: {error.strerror}") from error


def compile_into(
    scratch: Path,
    include: Path,
    compiler: str,
    flags: Sequence[str] = (),
    sets: Mapping[str, Sequence[str]] | None = None,
    *,
    cancel: threading.Event | None = None,
) -> Path:
    """Compile and link everything in a folder; raises BuildError, Cancelled.

    flags: added for every file, such as those of a sanitizer. sets: instruction sets
    with their flags; None: all for this processor.
    """
    sets = sets or SETS[machine()]
    objects = compile_objects(scratch, include, compiler, flags, sets, cancel=cancel)
    library = scratch / "made.so"
    run([compiler, *flags, "-shared", "-pthread", *objects, "-o", library])
    return library


def compile_objects(
    scratch: Path,
    include: Path,
    compiler: str,
    flags: Sequence[str],
    sets: Mapping[str, Sequence[str]],
    *,
    cancel: threading.Event | None = None,
) -> list[Path]:
    """Compile everything in a folder; raises BuildError, Cancelled."""
    common = [*_COMMON, f"-I{include}", *(f"-DEDGECS_{name.upper()}" for name in sets)]
    jobs = [
        (
            SOURCES / "kernels.cpp",
            scratch / f"{name}.o",
            [*common, *_EXACT, *own, *flags],
        )
        for name, own in sets.items()
    ]
    jobs += [
        (source, scratch / f"{source.stem}.o", [*common, "-O2", *flags])
        for source in _sources()
        if source.suffix == ".cpp" and source.name != "kernels.cpp"
    ]

    def compile_one(job: tuple[Path, Path, list[str]]) -> Path:
        source, made, options = job
        compilers.run([compiler, *options, "-c", source, "-o", made])
        return made

    # One file takes 400 MB of memory, and its time counts while it waits for others.
    with (
        ThreadPoolExecutor(_processors()) as pool,
        Compilers(_PATIENCE, cancel) as compilers,
    ):
        made = [pool.submit(compile_one, job) for job in jobs]
        for one in wait(made, return_when=FIRST_EXCEPTION).done:
            one.result()  # raises, and ends the others
        return [one.result() for one in made]


def _processors() -> int:
    """As `engines.host` has it, whose dependencies a build has not."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _sources() -> list[Path]:
    return sorted(file for file in SOURCES.iterdir() if file.suffix in (".cpp", ".h"))


def find_compiler() -> str:
    """A C++ compiler; raises BuildError."""
    for candidate in _COMPILERS:
        if found := shutil.which(candidate):
            return found
    raise BuildError(f"there is no C++ compiler ({', '.join(_COMPILERS)})")


def run(command: Sequence[str | Path]) -> None:
    """Run a compiler; raises BuildError with its first error message."""
    with Compilers(_PATIENCE) as compilers:
        compilers.run(command)


def _remove_others(library: Path) -> None:
    """Remove libraries of earlier sources and headers."""
    for other in library.parent.glob("edgecs-*.so"):
        if other != library:
            other.unlink(missing_ok=True)
