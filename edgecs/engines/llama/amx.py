"""Whether llama.cpp's AMX code computes in this build, tried in a child process.

GCC (at least 12) takes most of AMX's tile configuration for unused and drops it. What
it builds dies at the first prompt that meets quantised weights, and its process with it
(llama.cpp's pull request 26954). Weights that are not repacked do not get there.
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

_NAME = "amx"  # of the finding, in the file that keeps it
# chosen: thirty times what it takes.
_LIMIT = 30.0  # seconds: it takes one, and many while the machine is busy
# chosen: many times what a tiny model takes.
_MEMORY = 2 << 30  # bytes that it may take
# chosen: five times what roundings make.
_TOLERANCE = 1.0  # of logits with a spread of 8; roundings make 0.2
_SCRIPT = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from edgecs.engines.llama import amx; amx.compute(sys.argv[1])"
)


def finding(kept: Path | None) -> str:
    """What became of the test, see `trial.tried`.

    kept: the file that keeps what is certain, None: each process tests. Where it is
    unreadable, of another build or not to be written, the next process tests again.
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
    """What a user should know unless AMX works."""
    slower = "so weights are not repacked, which is slower"
    if found not in trial.CERTAIN:
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
    """What a child process finds; asked once a process."""
    return trial.tried(_SCRIPT, _LIMIT)
