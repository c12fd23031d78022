"""Whether llama.cpp survives a file, tried in a child process before it is opened.

llama.cpp takes much of a file's metadata for granted and ends its process where that is
wrong: a token that is there twice, no layers, an epsilon that is not a number. A GGUF
comes from anywhere, so a file that is new here is opened and asked for a token in a
process of its own first. What it survived once it survives again: that is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from edgecs.core.draft import score_one
from edgecs.core.files import write_whole
from edgecs.core.reading import read_bounded
from edgecs.engines import child
from edgecs.engines.llama import library
from edgecs.errors import Cancelled, EdgecsError, ModelError
from edgecs.hub.download import split_parts

NAME = "tried.json"  # beside what was found out about AMX
# chosen: a network disk is given its time.
_SECONDS, _SLOW = 60.0, 20 << 20  # to open any file, and bytes a second of a slow disk
# chosen: room for libraries, the tokenizer and a small model.
_LEAST_MEMORY = 2 << 30  # bytes that a child may always have
# chosen: more models than people have.
_KEPT = 200  # files that are remembered
_LARGEST = 1 << 16  # bytes of the file with their names
# chosen: too short to be noticed.
_POLL = 0.01  # seconds between two looks whether to stop
_SCRIPT = (
    "import sys; sys.path[:] = sys.argv[4:]; "
    "from edgecs.engines.llama import model_trial; model_trial.attempt(*sys.argv[1:4])"
)
_TEXT = "hello <|user|> wörld \u65e5\u672c 123\n\t\ud7ff"
_CAUSE = re.compile(r"(GGML_ASSERT\(.*|GGML_ABORT.*|what\(\): .*)")
_known: set[str] = set()  # files that this process has tried


def refuse_fatal(
    path: Path, kept: Path | None = None, cancel: threading.Event | None = None
) -> None:
    """Raises ModelError for a file that ends llama.cpp's process, Cancelled.

    kept: the file that keeps what was found out about this build; None: each process
    tries for itself. Where no process can be started, nothing is tried.
    """
    if not child.can_start():
        return
    try:
        mark = _mark(path)
    except OSError:
        return  # it is missed with a better sentence when it is opened
    if mark in _known:
        return
    tried = kept.with_name(NAME) if kept else None
    build = library.stamp()
    before = _read(tried, build) if tried and build else []
    if mark not in before:
        _try(path, cancel or threading.Event())
        if tried and build:
            _write(tried, build, [*before, mark][-_KEPT:])
    _known.add(mark)


def attempt(path: str, seconds: str, memory: str) -> None:
    """What the child does: all that a first answer takes. Errors are for the parent.

    A tokenizer is read by itself too: where llama.cpp refuses the rest of a file, it
    has not come to it.
    """
    child.prepare(float(seconds), int(memory))
    from edgecs.core.context import Context
    from edgecs.engines.llama.language_model import LlamaLM
    from edgecs.engines.llama.model import LlamaModel
    from edgecs.engines.llama.tokenizer import load_vocabulary
    from edgecs.engines.load_options import LoadOptions

    options = LoadOptions(
        n_ctx=64,
        n_gpu_layers=0,
        repack=False,
        huge_pages=False,
        n_batch=32,
        max_draft=3,
    )
    cancel = threading.Event()
    with suppress(EdgecsError), load_vocabulary(Path(path)) as alone:
        alone.pieces()
    with suppress(EdgecsError):
        model = LlamaModel(Path(path), options, cancel)
        vocabulary = model.vocabulary
        vocabulary.pieces()
        for text in (_TEXT, vocabulary.bos, vocabulary.eos, ""):
            vocabulary.encode(text)
        target = LlamaLM(model, options, cancel)
        if Path(path).stat().st_size < psutil.virtual_memory().available:
            context = Context([i % vocabulary.size for i in range(8)])
            score_one(target, context)
            context.append([8 % vocabulary.size])
            score_one(target, context)


def _try(path: Path, cancel: threading.Event) -> None:
    size = sum(part.stat().st_size for part in _parts(path))
    limit = _SECONDS + size / _SLOW
    memory = max(_LEAST_MEMORY, psutil.virtual_memory().available)
    with tempfile.TemporaryFile() as said:
        started = subprocess.Popen(
            child.command(_SCRIPT, str(path), str(limit), str(memory)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # a debugger takes seconds
            start_new_session=True,  # a Ctrl-C is not for it
        )
        try:
            code = _wait(started, limit, cancel, path)
        finally:
            started.kill()
            started.wait()
        if code:
            raise ModelError(_sentence(path, code, _cause(said)))


def _wait(
    started: subprocess.Popen[bytes], limit: float, cancel: threading.Event, path: Path
) -> int:
    """The exit code. Raises Cancelled, ModelError where it takes too long."""
    until = time.monotonic() + limit
    while (code := started.poll()) is None:
        if cancel.is_set():
            raise Cancelled(f"stopped while trying {path.name}")
        if time.monotonic() > until:
            raise ModelError(
                f"llama.cpp does not open {path} within {limit:.0f} s: use another file"
            )
        time.sleep(_POLL)
    return code


def _sentence(path: Path, code: int, cause: str) -> str:
    how = child.ended_by(code) or f"exit code {code}"
    why = f"{how}: {cause}" if cause else how
    return (
        f"{path} ends llama.cpp's process ({why}): the file is damaged, or was made to "
        "do harm; fetch the model again"
    )


def _cause(said: IO[bytes]) -> str:
    """The assertion that failed, if the last words have one."""
    said.seek(0, os.SEEK_END)
    said.seek(max(0, said.tell() - (1 << 14)))
    found = _CAUSE.findall(said.read().decode("utf-8", "replace"))
    return found[-1][:200].strip() if found else ""


def _parts(path: Path) -> list[Path]:
    return [path.with_name(part) for part in split_parts(path.name)]


def _mark(path: Path) -> str:
    """What tells a file from others and from itself after a change."""
    stamps = [
        (str(part.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino)
        for part in _parts(path)
        for stat in [part.stat()]
    ]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:32]


def _read(tried: Path, build: str) -> Sequence[str]:
    """Files that this build has survived."""
    with suppress(OSError, ValueError, RecursionError, TypeError, KeyError):
        table = json.loads(read_bounded(tried, _LARGEST))
        if table["build"] == build:
            return [str(mark) for mark in list(table["files"])]
    return []


def _write(tried: Path, build: str, files: Sequence[str]) -> None:
    # Where nothing can be kept, the next process tries again.
    with suppress(OSError):
        tried.parent.mkdir(parents=True, exist_ok=True)
        write_whole(tried, json.dumps({"build": build, "files": list(files)}).encode())


if __name__ == "__main__":  # a file can be tried by hand
    refuse_fatal(Path(sys.argv[1]))
