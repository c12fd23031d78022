"""llama.cpp as a library: its log, its devices, its build options."""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import llama_cpp as lib
from llama_cpp import _ggml

from edgecs.engines.host import cpu_features, cpu_name
from edgecs.engines.offload import Device

logger = logging.getLogger("edgecs.llama_cpp")

_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUED = 5  # ggml_log_level: the text continues the previous line
_GPU, _INTEGRATED_GPU, _ACCELERATOR = 1, 2, 3  # ggml_backend_dev_type
_NOT_GPUS = ("CPU", "BLAS", "RPC")
_OPTIONS = {"ROCm": "HIP", "MTL": "METAL"}  # build options named unlike the backend
# GCC treats AMX's tile configuration as unused and drops it, see `amx`.
_KEEPS_AMX = "-fno-dse -fno-tree-dse"


class _Log:
    """llama.cpp's log as log records; the newest lines are kept."""

    def __init__(self) -> None:
        self.lines: deque[tuple[int, str]] = deque(maxlen=2000)
        self._level = logging.INFO

    def write(self, level: int, text: bytes) -> None:
        if level != _CONTINUED:
            self._level = _LEVELS.get(level, logging.INFO)
        if self._level <= logging.DEBUG:
            return  # thousands of lines on every load, none of them actionable
        line = text.decode(errors="replace").rstrip()
        if line.strip(". "):
            self.lines.append((self._level, line))
            logger.log(self._level, "%s", line)


log = _Log()


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, data: object) -> None:
    log.write(level, text)


# An integer, because creating a pointer object takes longer than the rest of the call.
logits_address = lib.llama_cpp._lib["llama_get_logits_ith"]
logits_address.argtypes = [lib.llama_context_p_ctypes, ctypes.c_int32]
logits_address.restype = ctypes.c_void_p
states_address = lib.llama_cpp._lib["llama_get_embeddings_ith"]
states_address.argtypes = [lib.llama_context_p_ctypes, ctypes.c_int32]
states_address.restype = ctypes.c_void_p

lib.llama_log_set(_on_log, ctypes.c_void_p(0))
lib.llama_backend_init()


def clear_log() -> None:
    """Drop the kept lines, so that the next ones belong to one operation."""
    log.lines.clear()


def logged() -> list[str]:
    """The kept lines, oldest first."""
    return [line for _, line in log.lines]


def logged_errors() -> list[str]:
    """The kept lines of level error, oldest first."""
    return [line for level, line in log.lines if level >= logging.ERROR]


def _ggml_function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    function = getattr(_ggml.libggml, name)
    function.restype, function.argtypes = result, arguments
    return cast(Callable[..., Any], function)


def devices() -> list[Device]:
    """The GPUs that this build of llama.cpp detects, with their memory."""
    found = _devices()
    discrete = [device for kind, device in found if kind == _GPU]
    # llama.cpp ignores integrated GPUs if there is another one.
    return discrete or [device for kind, device in found if kind == _INTEGRATED_GPU]


def accelerators() -> list[str]:
    """The libraries that compute some nodes instead of the CPU backend: BLAS."""
    return [device.name for kind, device in _devices() if kind == _ACCELERATOR]


def _devices() -> list[tuple[int, Device]]:
    """All devices, each with its ggml_backend_dev_type."""
    size = ctypes.c_size_t
    get = _ggml_function("ggml_backend_dev_get", ctypes.c_void_p, size)
    kind = _ggml_function("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
    name = _ggml_function("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
    about = _ggml_function(
        "ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p
    )
    memory = _ggml_function(
        "ggml_backend_dev_memory",
        None,
        ctypes.c_void_p,
        ctypes.POINTER(size),
        ctypes.POINTER(size),
    )
    found = []
    for i in range(_ggml_function("ggml_backend_dev_count", size)()):
        device = get(i)
        free, total = size(), size()
        memory(device, ctypes.byref(free), ctypes.byref(total))
        texts = name(device).decode(), about(device).decode()
        found.append((kind(device), Device(*texts, free.value, total.value)))
    return found


def backends() -> list[str]:
    """The backends compiled into this build, with or without a device."""
    count = _ggml_function("ggml_backend_reg_count", ctypes.c_size_t)
    get = _ggml_function("ggml_backend_reg_get", ctypes.c_void_p, ctypes.c_size_t)
    name = _ggml_function("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
    return [name(get(i)).decode() for i in range(count())]


def gpu_backends() -> list[str]:
    """The compiled backends that can offload layers."""
    return [name for name in backends() if name not in _NOT_GPUS]


def supports_offload() -> bool:
    """Whether layers can be offloaded: a GPU backend has a device."""
    # llama.cpp also says so of a build with the RPC backend, which has no device.
    kinds = {kind for kind, _ in _devices()}
    return bool(lib.llama_supports_gpu_offload()) and bool(
        kinds & {_GPU, _INTEGRATED_GPU}
    )


def version() -> str:
    """Version of llama-cpp-python, which pins its version of llama.cpp."""
    return str(lib.__version__)


def system_info() -> str:
    """Instruction sets and options of the build, as printed by llama.cpp."""
    return str(lib.llama_print_system_info().decode()).strip()


def has_amx() -> bool:
    """Whether this build contains llama.cpp's code for AMX."""
    return "AMX_INT8 = 1" in system_info()


def folder() -> Path:
    """The folder of this build's shared libraries."""
    return Path(lib.llama_cpp._lib._name).parent


def stamp() -> str | None:
    """A digest of this build and this processor; None if its files are unreadable."""
    try:
        files = [(file.name, file.stat()) for file in folder().iterdir()]
    except OSError:
        return None
    stamps = sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)
    parts = [version(), system_info(), cpu_name(), cpu_features()]
    return hashlib.sha256(json.dumps([parts, stamps]).encode()).hexdigest()


def build_command(gpus: list[str]) -> str:
    """The command that compiles this version again with backends of these names.

    The options use -C, which works in every shell.
    """
    options = {f"GGML_{_OPTIONS.get(name, name.upper())}": "on" for name in gpus}
    if has_amx():
        options["CMAKE_CXX_FLAGS"] = _KEEPS_AMX
    defined = "".join(f'-C "cmake.define.{k}={v}" ' for k, v in options.items())
    return (
        f"{sys.executable} -m pip install --force-reinstall --no-cache-dir --no-deps "
        f'{defined}"llama-cpp-python=={version()}"'
    )
