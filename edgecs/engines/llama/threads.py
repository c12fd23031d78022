"""Pin each of llama.cpp's threads to a core (its `--cpu-strict`).

Every operation of a graph ends with a barrier, so a call has hundreds of them. If there
are as many threads as cores and another program computes, Linux often runs two of the
threads on one core while the program has another one: a barrier then lasts until a time
slice ends. With pinned threads, only one of them shares its core with the program.
`edgecs_bench.busy` measures both.

With more cores than threads, threads are not pinned: Linux finds a free core.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import llama_cpp as lib

_MOST_CPUS = 512  # GGML_MAX_N_THREADS
_CPUS = Path("/sys/devices/system/cpu")


class _Params(ctypes.Structure):
    """ggml_threadpool_params; `rest` is room for fields of later versions."""

    _fields_ = (
        ("cpumask", ctypes.c_bool * _MOST_CPUS),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
        ("rest", ctypes.c_byte * 256),
    )


class ThreadPool:
    """The threads of one llama.cpp context; entered for every call.

    cpus: the CPUs they may use, ascending. strict: pin one thread to each. Raises
    OSError or AttributeError for an unsupported build of llama.cpp.
    """

    def __init__(self, context: Any, threads: int, cpus: list[int], strict: bool):
        base, cpu = _loaded("libggml-base.so.0"), _loaded("libggml-cpu.so.0")
        params = _Params()
        base.ggml_threadpool_params_init(ctypes.byref(params), threads)
        if params.n_threads != threads or params.strict_cpu or params.paused:
            raise OSError("ggml_threadpool_params has other fields in this version")
        for number in cpus:
            params.cpumask[number] = True
        params.strict_cpu = strict
        # Not os.sched_*affinity: sets of numbers take several times as long.
        libc = ctypes.PyDLL(None)
        kinds: list[Any] = [ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p]
        self._get, self._set = libc.sched_getaffinity, libc.sched_setaffinity
        self._get.argtypes = self._set.argtypes = kinds
        self._mask = ctypes.create_string_buffer(1024)  # 8,192 processors
        self._size = len(self._mask)
        if self._get(0, self._size, self._mask) < 0:
            raise OSError("this system has more than 8,192 processors")
        cpu.ggml_threadpool_new.restype = ctypes.c_void_p
        self._free = cpu.ggml_threadpool_free
        self._free.argtypes, self._free.restype = [ctypes.c_void_p], None
        self._pool = cpu.ggml_threadpool_new(ctypes.byref(params))
        if not self._pool:
            raise OSError("ggml has no memory for a thread pool")
        attach = lib.llama_cpp._lib["llama_attach_threadpool"]
        attach.argtypes = [lib.llama_context_p_ctypes, *[ctypes.c_void_p] * 2]
        attach.restype = None
        attach(context, self._pool, self._pool)

    def __enter__(self) -> None:
        """Save the affinity of the calling thread, which is one of the threads."""
        self._get(0, self._size, self._mask)

    def __exit__(self, *exc: object) -> None:
        """Restore the affinity of the calling thread, for it and its children."""
        self._set(0, self._size, self._mask)

    def free(self) -> None:
        """Free the threads; must be called after the context is freed."""
        self._free(self._pool)


def thread_pool(context: Any, threads: int, *, strict: bool) -> ThreadPool | None:
    """A thread pool, or None if it is not supported.

    It pins threads if `strict` is set and there are as many cores as threads. Otherwise
    it only sets the allowed CPUs, as contexts of a process share threads.
    """
    if sys.platform != "linux" or threads == 1:
        return None
    allowed = os.sched_getaffinity(0)
    cpus = sorted(allowed)
    cores = one_of_each(map(_siblings, cpus), allowed)
    if strict := strict and threads in (len(cpus), len(cores)):
        cpus = cpus if threads == len(cpus) else cores
    if cpus[-1] >= _MOST_CPUS:
        return None
    try:
        return ThreadPool(context, threads, cpus, strict)
    except (OSError, AttributeError):
        return None


def one_of_each(cores: Iterable[set[int]], allowed: set[int]) -> list[int]:
    """The first allowed CPU of every core, ascending.

    cores: for each CPU, all CPUs of its core.

    >>> one_of_each([{0, 4}, {1, 5}, {0, 4}, {1, 5}], {0, 4, 5})
    [0, 5]
    """
    return sorted({min(core & allowed) for core in cores if core & allowed})


def _siblings(cpu: int) -> set[int]:
    """The CPUs of the same core: `0,4` or `0-1` in a file."""
    try:
        text = (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text("ascii")
        parts = [list(map(int, part.split("-"))) for part in text.split(",")]
        return {n for part in parts for n in range(part[0], part[-1] + 1)} | {cpu}
    except (OSError, ValueError):
        return {cpu}


def _loaded(name: str) -> ctypes.CDLL:
    """A library that llama.cpp has loaded; another name would load a second copy."""
    return ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
