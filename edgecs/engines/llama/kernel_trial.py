"""Test edgecs' kernels on this machine, in a child process at first use.

A compiler may be broken, a processor may report unsupported instructions, and another
llama.cpp may handle graphs differently: none of these may crash a user's process or
change answers.
"""

from __future__ import annotations

import functools
import sys
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Context
from edgecs.core.draft import Draft, score_one
from edgecs.engines import child, trial
from edgecs.engines.llama import library
from edgecs.engines.llama.kernel_types import TYPES, errors
from edgecs.engines.llama.kernels import KernelSet, kernel_sets
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.llama.random_gguf import write_random_gguf
from edgecs.engines.load_options import LoadOptions

NAME = "kernels.json"  # next to the outcome of the AMX test
# chosen: sixty times the usual time.
_LIMIT = 60.0  # seconds: it takes one, and many while the machine is busy
# chosen: many times what a tiny model needs.
_MEMORY = 2 << 30  # bytes that it may use
# chosen: five times the rounding error.
_WRONG = 0.05  # relative error of a product; rounding of activations gives 0.01
# chosen: five times the rounding error.
_TOLERANCE = 1.0  # of logits with a spread of 8; the rounding error is 0.2
# chosen: several columns, and an odd number of them.
_WIDTH = 5  # tokens of a call, whose rows must equal those of single tokens
_SCRIPT = (
    "import sys; sys.path[:] = sys.argv[4:]; "
    "from edgecs.engines.llama import kernel_trial as trial; "
    "trial.compute(*sys.argv[1:4])"
)


def finding(file: Path, name: str, kept: Path | None) -> str:
    """The outcome of the test of an instruction set, see `trial.tried`.

    file: the library. kept: certain outcomes are stored next to this file, None: each
    process tests. If they are of another build or not writable, the next process tests.
    """
    build = library.stamp() if kept else None
    place = kept.with_name(NAME) if kept else None
    mark = f"{build} {file.name} {name}"
    found = trial.read(place, mark, "kernels") if place and build else None
    if found:
        return found
    tested = _tested(file, name)
    if place and build and tested in trial.CERTAIN:
        trial.write(place, mark, "kernels", tested)
    return tested


@functools.cache
def _tested(file: Path, name: str) -> str:
    """The outcome in a child process, tested once per process."""
    return trial.tried(_SCRIPT, _LIMIT, str(file), name)


def compute(folder: str, file: str, name: str) -> None:
    """In the child: test every weight type, and a model with and without kernels."""
    child.prepare(_LIMIT, _MEMORY)
    kernels = {one.name: one for one in kernel_sets(Path(file))}[name]
    random = np.random.default_rng(0)
    for kind in TYPES:
        error, same = errors(kernels, kind, random)
        if not (error < _WRONG and same):
            sys.exit(trial.DISAGREES)
    path = write_random_gguf(Path(folder) / "tiny.gguf", kind="Q8_0")
    single, together = _rows(path, kernels)
    expected, _ = _rows(path, None)
    if not np.array_equal(single, together):
        sys.exit(trial.DISAGREES)
    if not np.allclose(single, expected, rtol=0, atol=_TOLERANCE):
        sys.exit(trial.DISAGREES)


def _rows(
    path: Path, kernels: KernelSet | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits after a prompt: of tokens computed one by one, and in one call."""
    options = LoadOptions(n_ctx=256, n_gpu_layers=0, threads=2, repack=False)
    cancel = threading.Event()
    model = LlamaModel(path, options, cancel, kernels)
    target = LlamaLM(model, options, cancel)
    context, more = Context(range(64)), range(64, 64 + _WIDTH)
    score_one(target, context)
    draft = Draft.chain(np.array(more[1:], dtype=np.int32), "")
    context.append([more[0]])
    together = np.array(score_one(target, context, draft).logits)
    single = []
    for token in more:
        if token != more[0]:
            context.append([token])
        single.append(np.array(score_one(target, context).logits[0]))
    target.close()
    model.close()
    return np.stack(single), together
