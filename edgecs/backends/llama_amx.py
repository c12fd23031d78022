"""Whether llama.cpp's AMX code computes in this build, tried in a child process.

GCC (at least 12) takes most of AMX's tile configuration for unused and drops it. What
it builds dies at the first prompt that meets quantised weights, and its process with it
(llama.cpp's pull request 26954). Weights that are not repacked do not get there.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecs.backends import child
from edgecs.backends import llama_library as library
from edgecs.backends.llama_lm import LlamaLM
from edgecs.backends.llama_model import LlamaModel
from edgecs.context import Context
from edgecs.draft import NOTHING
from edgecs.files import write_whole
from edgecs.options import LoadOptions
from edgecs.random_gguf import write_random_gguf
from edgecs.reading import read_bounded

WORKS, CRASHES, WRONG = "works", "crashes", "computes nonsense"
_CERTAIN = (WORKS, CRASHES, WRONG)
_LIMIT = 30.0  # seconds: it takes one, and many while the machine is busy
_LARGEST = 1 << 10  # bytes of the file that keeps a finding
_MEMORY = 2 << 30  # bytes that it may take
_DISAGREES = 3  # the child's exit code, not one that Python has a use for
_TOLERANCE = 1.0  # of logits with a spread of 8; roundings make 0.2
_SCRIPT = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from edgecs.backends import llama_amx; llama_amx.compute(sys.argv[1])"
)


def finding(kept: Path | None) -> str:
    """WORKS, CRASHES or WRONG; else what became of the test, as a verb.

    kept: the file that keeps what is certain, None: each process tests. Where it is
    unreadable, of another build or not to be written, the next process tests again.
    """
    build = library.stamp() if kept else None
    found = _read(kept, build) if kept and build else None
    if found:
        return found
    tested = _tested()
    if kept and build and tested in _CERTAIN:
        _write(kept, build, tested)
    return tested


def warning(found: str) -> str:
    """What a user should know unless AMX works."""
    slower = "so weights are not repacked, which is slower"
    if found not in _CERTAIN:
        return (
            "whether llama.cpp's AMX code works in this build is not known: its test "
            f"{found}, {slower}; the next start tests again"
        )
    command = library.build_command(library.gpu_backends())
    return (
        f"llama.cpp's AMX code {found} in this build, {slower}; to mend it, compile it "
        f"again (some minutes): {command}"
    )


def compute(folder: str) -> None:
    """What the child does: a prompt on quantised weights, repacked and as they are."""
    child.prepare(_LIMIT, _MEMORY)
    path = write_random_gguf(Path(folder) / "tiny.gguf", kind="Q8_0")
    plain, repacked = _row(path, repack=False), _row(path, repack=True)
    if not np.allclose(plain, repacked, rtol=0, atol=_TOLERANCE):
        sys.exit(_DISAGREES)


def _row(path: Path, *, repack: bool) -> NDArray[np.float32]:
    """The logits after a prompt that is wide enough for AMX."""
    options = LoadOptions(n_ctx=256, n_gpu_layers=0, threads=1, repack=repack)
    cancel = threading.Event()
    model = LlamaModel(path, options, cancel)
    target = LlamaLM(model, options, cancel)
    row = np.array(target.score(Context(range(64)), NOTHING).logits[0])
    target.close()
    model.close()
    return row


@functools.cache
def _tested() -> str:
    """What a child process finds; asked once a process."""
    if not child.can_start():
        return "needs a Python of its own"
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            return _verdict(_exit_code(folder))
    except subprocess.TimeoutExpired:
        return f"did not end within {_LIMIT:.0f} s"
    except OSError as error:
        return f"did not start ({error.strerror})"


def _exit_code(folder: str) -> int:
    return subprocess.run(
        child.command(_SCRIPT, folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=_LIMIT,
        start_new_session=True,  # a Ctrl-C is not for it, and would look like a crash
    ).returncode


def _verdict(code: int) -> str:
    if code == 0:
        return WORKS
    if code == _DISAGREES:
        return WRONG
    if child.is_fault(code):
        return CRASHES
    name = child.ended_by(code)
    return f"was ended by {name}" if name else f"ended with exit code {code}"


def _read(kept: Path, build: str) -> str | None:
    """What was found for this build; None: nothing that `_write` has written."""
    try:
        table = json.loads(read_bounded(kept, _LARGEST))
    except (OSError, ValueError, RecursionError):  # the latter by [[[[[[...
        return None
    for found in _CERTAIN:
        if table == {"build": build, "amx": found}:
            return found
    return None


def _write(kept: Path, build: str, found: str) -> None:
    # Where nothing can be kept, the next process tests again.
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps({"build": build, "amx": found}).encode())
