"""Test in a child process whether a file crashes llama.cpp, before it is opened.

llama.cpp trusts much of a file's metadata and aborts its process if it is invalid: a
duplicate token, no layers, an epsilon that is not a number. A GGUF may come from an
untrusted source, so a new file is first opened and evaluated in a child process. Files
that pass are remembered.
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

import numpy as np
import psutil

from edgecs.core.draft import Draft, score_one
from edgecs.core.files import write_whole
from edgecs.core.reading import read_bounded
from edgecs.engines import child
from edgecs.engines.llama import library
from edgecs.errors import Cancelled, EdgecsError, ModelError
from edgecs.hub.download import split_parts

NAME = "tried.json"  # next to the outcome of the AMX test
# chosen: enough for a network disk.
_SECONDS, _SLOW = 60.0, 20 << 20  # to open any file; bytes per second of a slow disk
# chosen: room for libraries, the tokenizer and a small model.
_LEAST_MEMORY = 2 << 30  # bytes that a child may always use
# chosen: more models than users have.
_KEPT = 200  # files that are remembered
_LARGEST = 1 << 16  # bytes of the file with their names
# chosen: too short to be noticed.
_POLL = 0.01  # seconds between two checks whether to stop
_SCRIPT = (
    "import sys; sys.path[:] = sys.argv[5:]; "
    "from edgecs.engines.llama import model_trial; model_trial.attempt(*sys.argv[1:5])"
)
_TEXT = "hello <|user|> wörld \u65e5\u672c 123\n\t\ud7ff"
_CAUSE = re.compile(r"(GGML_ASSERT\(.*|GGML_ABORT.*|what\(\): .*)")
_known: set[str] = set()  # files that this process has tested


def refuse_fatal(
    path: Path,
    kept: Path | None = None,
    cancel: threading.Event | None = None,
    beside: Path | None = None,
) -> None:
    """Raise ModelError for a file that crashes llama.cpp, Cancelled if cancelled.

    kept: the file that stores the outcomes of this build; None: each process tests. If
    no child process can be started, the file is not tested. beside: the target of a
    head, which has passed.
    """
    if not child.can_start():
        return
    try:
        mark = _mark(*filter(None, (path, beside)))
    except OSError:
        return  # opening the file gives a better message
    if mark in _known:
        return
    tried = kept.with_name(NAME) if kept else None
    build = library.stamp()
    before = _read(tried, build) if tried and build else []
    if mark not in before:
        _try(path, cancel or threading.Event(), beside)
        if tried and build:
            _write(tried, build, [*before, mark][-_KEPT:])
    _known.add(mark)


def attempt(path: str, seconds: str, memory: str, beside: str) -> None:
    """In the child: do all that a first answer needs. The parent reports errors.

    The tokenizer is also read separately, because llama.cpp does not read it if it
    rejects another part of a file. beside: the target of a head; "": it is none.
    """
    child.prepare(float(seconds), int(memory))
    from edgecs.core.context import Context
    from edgecs.engines.llama.embedder import LlamaEmbedder
    from edgecs.engines.llama.language_model import LlamaLM
    from edgecs.engines.llama.model import EmbeddingModel, LlamaModel
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
    if beside:
        from edgecs.engines.llama.heads.trial import attempt_head

        with suppress(EdgecsError):
            attempt_head(Path(path), Path(beside), options)
        return
    with suppress(EdgecsError):
        try:
            model = LlamaModel(Path(path), options, cancel)
        except EmbeddingModel:
            model = LlamaModel(Path(path), options, cancel, embeds=True)
            ids = np.arange(8, dtype=np.int32) % model.vocabulary.size
            LlamaEmbedder(model, options, cancel).embed([ids, ids[:3]])
            return
        vocabulary = model.vocabulary
        vocabulary.pieces()
        for text in (_TEXT, vocabulary.bos, vocabulary.eos, ""):
            vocabulary.encode(text)
        target = LlamaLM(model, options, cancel)
        if Path(path).stat().st_size < psutil.virtual_memory().available:
            context = Context([i % vocabulary.size for i in range(8)])
            score_one(target, context)
            for last in (8, 9):  # the second time, the rejected draft is removed
                context.append([last % vocabulary.size])
                score_one(target, context, Draft.chain([0, 0], "trial"))


def _try(path: Path, cancel: threading.Event, beside: Path | None) -> None:
    size = sum(part.stat().st_size for part in _parts(path))
    limit = _SECONDS + size / _SLOW
    memory = max(_LEAST_MEMORY, psutil.virtual_memory().available)
    with tempfile.TemporaryFile() as said:
        started = subprocess.Popen(
            child.command(
                _SCRIPT, str(path), str(limit), str(memory), str(beside or "")
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # a debugger takes seconds
            start_new_session=True,  # Ctrl-C must not reach it
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
    """The exit code. Raises Cancelled, or ModelError if it takes too long."""
    until = time.monotonic() + limit
    while (code := started.poll()) is None:
        if cancel.is_set():
            raise Cancelled(f"stopped while testing {path.name}")
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
        f"{path} crashes llama.cpp ({why}): the file is damaged or malicious; fetch "
        "the model again"
    )


def _cause(said: IO[bytes]) -> str:
    """The failed assertion, if the end of stderr has one."""
    said.seek(0, os.SEEK_END)
    said.seek(max(0, said.tell() - (1 << 14)))
    found = _CAUSE.findall(said.read().decode("utf-8", "replace"))
    return found[-1][:200].strip() if found else ""


def _parts(path: Path) -> list[Path]:
    return [path.with_name(part) for part in split_parts(path.name)]


def _mark(*paths: Path) -> str:
    """A digest that identifies files and changes with them."""
    stamps = [
        (str(part.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino)
        for path in paths
        for part in _parts(path)
        for stat in [part.stat()]
    ]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:32]


def _read(tried: Path, build: str) -> Sequence[str]:
    """Digests of the files that this build has passed."""
    with suppress(OSError, ValueError, RecursionError, TypeError, KeyError):
        table = json.loads(read_bounded(tried, _LARGEST))
        if table["build"] == build:
            return [str(mark) for mark in list(table["files"])]
    return []


def _write(tried: Path, build: str, files: Sequence[str]) -> None:
    # If the file cannot be written, the next process tests again.
    with suppress(OSError):
        tried.parent.mkdir(parents=True, exist_ok=True)
        write_whole(tried, json.dumps({"build": build, "files": list(files)}).encode())


if __name__ == "__main__":  # to test a file by hand
    refuse_fatal(Path(sys.argv[1]))
