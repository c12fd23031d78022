"""Which execution providers of ONNX Runtime really work on this machine.

A provider that was compiled in may still lack its drivers, so one counts as working
only when a session was opened on it.
"""

from __future__ import annotations

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

# Model: y = Identity(x) over float32 [1], IR version 8, opset 13. As bytes, because
# building it would need the package onnx.
_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a02"
    "0801620f0a0179120a0a08080112040a02080142040a00100d"
)
_OFF = 4  # severity: fatal errors only; a missing driver is an answer, not an error


def version() -> str:
    """Version of ONNX Runtime."""
    return str(ort.__version__)


def working_providers() -> dict[str, bool]:
    """Every provider of this build, and whether a session opens on it."""
    ort.set_default_logger_severity(_OFF)
    return {name: _opens(name) for name in ort.get_available_providers()}


def _opens(provider: str) -> bool:
    options = ort.SessionOptions()
    options.log_severity_level = _OFF
    try:
        # Without enable_fallback=False a failure is printed to stdout and hidden.
        session = ort.InferenceSession(
            _IDENTITY, options, providers=[provider], enable_fallback=False
        )
    except (RuntimeError, ValueError, state.Fail, state.EPFail, state.NotImplemented):
        return False
    return bool(session.get_providers()[0] == provider)
