"""Test in a child process whether llama.cpp's AMX code works in this build.

GCC (at least 12) treats most of AMX's tile configuration as unused and drops it. Such a
build crashes at the first prompt with quantised weights (llama.cpp's pull request
26954). Weights that are not repacked do not use AMX.
"""

from __future__ import annotations

import functools
import sys
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Context
from edgecs.core.draft import score_one
from edgecs.engines import child, trial
from edgecs.engines.llama import library
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.llama.random_gguf import write_random_gguf
from edgecs.engines.load_options import LoadOptions

_NAME = "amx"  # key of the outcome in its file
# chosen: thirty times the usual time.
_LIMIT = 30.0  # seconds: it takes one, and many while the machine is busy
# chosen: many times what a tiny model needs.
_MEMORY = 2 << 30  # bytes that it may use
# chosen: five times the rounding error.
_TOLERANCE = 1.0  # of logits with a spread of 8; the rounding error is 0.2
_SCRIPT = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from edgecs.engines.llama import amx; amx.compute(sys.argv[1])"
)


def finding(kept: Path | None) -> str:
    """The outcome of the test, see `trial.tried`.

    kept: the file that stores certain outcomes, None: each process tests. If the file
    is unreadable, of another build or not writable, the next process tests again.
    """
    build = library.stamp() if kept else None
    found = trial.read(kept, build, _NAME) if kept and build else None
    if found:
        return found
    tested = _tested()
    if kept and build and tested in trial.CERTAIN:
        trial.write(kept, build, _NAME, tested)
    return tested


def warning(found: str) -> str:
    """A warning for an outcome other than WORKS."""
    slower = "so weights are not repacked, which is slower"
    if found not in trial.CERTAIN:
        return (
            "whether llama.cpp's AMX code works in this build is not known: its test "
            f"{found}, {slower}; the next start tests again"
        )
    command = library.build_command(library.gpu_backends())
    return (
        f"llama.cpp's AMX code {found} in this build, {slower}; to fix this, compile "
        f"it again (some minutes): {command}"
    )


def compute(folder: str) -> None:
    """In the child: compute a prompt with quantised weights, repacked and plain."""
    child.prepare(_LIMIT, _MEMORY)
    path = write_random_gguf(Path(folder) / "tiny.gguf", kind="Q8_0")
    plain, repacked = _row(path, repack=False), _row(path, repack=True)
    if not np.allclose(plain, repacked, rtol=0, atol=_TOLERANCE):
        sys.exit(trial.DISAGREES)


def _row(path: Path, *, repack: bool) -> NDArray[np.float32]:
    """The logits after a prompt that is wide enough for AMX."""
    options = LoadOptions(n_ctx=256, n_gpu_layers=0, threads=1, repack=repack)
    cancel = threading.Event()
    model = LlamaModel(path, options, cancel)
    target = LlamaLM(model, options, cancel)
    row = np.array(score_one(target, Context(range(64))).logits[0])
    target.close()
    model.close()
    return row


@functools.cache
def _tested() -> str:
    """The outcome in a child process, tested once per process."""
    return trial.tried(_SCRIPT, _LIMIT)
