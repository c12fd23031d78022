"""Choose the kernels of a target: edgecs' own where they are available."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from edgecs.engines import trial
from edgecs.engines.llama import kernel_trial
from edgecs.engines.llama.kernels import KernelSet, include_folder, kernel_sets
from edgecs.engines.load_options import KernelChoice
from edgecs.errors import ConfigError
from edgecs.native import build
from edgecs.native.compilers import BuildError

FOLDER = "kernels"  # next to the file of `findings`, see `load`
_NOT_BY_ITSELF = "portable"  # slower than llama.cpp's


def choose(
    wanted: KernelChoice,
    findings: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    cancel: threading.Event | None = None,
) -> tuple[KernelSet | None, str | None]:
    """The kernels to use, None: llama.cpp's; and why edgecs' are not used.

    wanted: "auto" for the best ones, if they are better than llama.cpp's; "own" for the
    best ones; or an instruction set. findings: the library may be compiled next to this
    file, None: only an existing library is used. say: called before and after a slow
    step. cancel: stops compiling when it is set.

    Raises ConfigError if requested kernels are not available, Cancelled.
    """
    if wanted == "llama":
        return None, None
    try:
        return _usable(wanted, findings, say, cancel), None
    except BuildError as error:
        if wanted == "auto":
            return None, str(error)
        raise ConfigError(
            f"--kernels {wanted} is not available: {error}; use --kernels auto or llama"
        ) from error


def _usable(
    wanted: str,
    findings: Path | None,
    say: Callable[[str], None],
    cancel: threading.Event | None,
) -> KernelSet:
    """Raises BuildError, Cancelled."""
    file = _library(findings.with_name(FOLDER) if findings else None, say, cancel)
    try:
        sets = {one.name: one for one in kernel_sets(file)}
    except OSError as error:
        raise BuildError(f"{file} cannot be loaded: {error}") from error
    best = next(iter(sets))
    if wanted == "auto" and best == _NOT_BY_ITSELF:
        raise BuildError("this processor has none of the required instruction sets")
    chosen = sets.get(best if wanted in ("auto", "own") else wanted)
    if chosen is None:
        raise BuildError(f"this processor supports {', '.join(sets)}")
    found = kernel_trial.finding(file, chosen.name, findings)
    if found != trial.WORKS:
        raise BuildError(f"their test here {found}")
    return chosen


def _library(
    folder: Path | None, say: Callable[[str], None], cancel: threading.Event | None
) -> Path:
    """The compiled library; raises BuildError, Cancelled."""
    found = build.find(include_folder(), folder)
    if found:
        return found
    if folder is None:
        raise BuildError("they are not compiled")
    return build.compile_library(include_folder(), folder, say, cancel)
