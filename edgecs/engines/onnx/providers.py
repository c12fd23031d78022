"""Execution providers of ONNX Runtime: which ones work, and a session on the best.

A provider that is compiled in may still lack its drivers. A provider works if a session
opens on it, and is chosen only if the model runs on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from edgecs.errors import ModelError

T = TypeVar("T")

PREFERENCE = (
    "CUDAExecutionProvider",
    "CoreMLExecutionProvider",
    "DmlExecutionProvider",
    "CPUExecutionProvider",
)
DEVICES = {"CUDAExecutionProvider": "cuda", "DmlExecutionProvider": "dml"}
"""Device of a provider's tensors; cpu for providers that are not listed."""

# ONNX Runtime has a class for every failure, without a common base but Exception.
# MemoryError comes from buffers of the size that the file requests.
ENGINE_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    MemoryError,
    *(kind for kind in vars(state).values() if isinstance(kind, type)
      and issubclass(kind, Exception)),
)  # fmt: skip

# Model: y = Identity(x) over float32 [1], IR version 8, opset 13. As bytes, because
# building it would need the package onnx.
_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a02"
    "0801620f0a0179120a0a08080112040a02080142040a00100d"
)
_OFF = 4  # severity: fatal errors only; a missing driver is an expected result
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")

_FAILURES: tuple[type[Exception], ...] = (*ENGINE_ERRORS, ModelError)


class Opened(NamedTuple):
    """The chosen provider, and why each preferred one was not chosen."""

    session: ort.InferenceSession
    provider: str
    notes: dict[str, str]


def version() -> str:
    """Version of ONNX Runtime."""
    return str(ort.__version__)


def working_providers() -> dict[str, bool]:
    """Every provider of this build, and whether a session opens on it."""
    ort.set_default_logger_severity(_OFF)
    return {name: _opens(name) for name in ort.get_available_providers()}


def open_best(
    path: Path,
    works: Callable[[ort.InferenceSession, str], T],
    *,
    threads: int,
    providers: Sequence[str] | None = None,
) -> tuple[T, Opened]:
    """Open the model on the first provider on which `works` succeeds.

    works: called with the session and the provider to run the model; may raise
    ModelError. Returns its result. Raises ModelError if no provider works.
    """
    ort.set_default_logger_severity(_OFF)
    notes: dict[str, str] = {}
    for name in PREFERENCE if providers is None else providers:
        if name not in ort.get_available_providers():
            notes[name] = "not in this build of ONNX Runtime"
            continue
        try:
            session = _open(str(path), name, threads)
            done = works(session, name)
        except _FAILURES as error:
            notes[name] = reason(error)
        else:
            return done, Opened(session, name, notes)
    # An invalid file fails on every provider; the last one has the plainest message.
    last = list(notes.items())[-1:]
    why = "; ".join(f"{name}: {note}" for name, note in last) or "no provider was named"
    raise ModelError(f"{path} does not run in ONNX Runtime ({why})")


def reason(error: Exception) -> str:
    """The engine's error message as one line without codes."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _PREFIX.sub("", lines[0]).strip()


def _open(model: str | bytes, provider: str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = _OFF
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Shapes change at every token, so a stored pattern would never be reused.
    options.enable_mem_pattern = False
    # Spinning threads would take cores from the target's threads.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Processors without VNNI otherwise add products of int8 in 16 bits, which overflow:
    # an int8 decoder then chose 2 of 57 tokens as in float32.
    options.add_session_config_entry("session.x64quantprecision", "1")
    # Without enable_fallback=False a failure is printed to stdout and hidden.
    session = ort.InferenceSession(
        model, options, providers=[provider], enable_fallback=False
    )
    if session.get_providers()[0] != provider:
        raise ModelError("it does not load: its drivers or libraries are missing")
    return session


def _opens(provider: str) -> bool:
    try:
        _open(_IDENTITY, provider, threads=1)
    except _FAILURES:
        return False
    return True
