"""edgecs' CPU kernels inside llama.cpp: the library, and its data for each model.

`llama_context_params.cb_eval` is called for every node of a graph before it is
computed; the library computes the nodes that it is faster at (edgecs/native/nodes.cpp).
No Python code runs while llama.cpp computes.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from edgecs.native import build
from edgecs.native.compilers import BuildError

_BASE = "libggml-base.so.0"  # this name gives the library that llama.cpp has loaded
_GGML = (
    "ggml_backend_buffer_is_host",
    "ggml_backend_buffer_get_usage",
    "ggml_backend_buffer_name",
)
_Progress = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_uint64)
_Address, _Int, _Long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_MULTIPLY = [_Address, _Int, _Address, ctypes.c_size_t, _Long, _Long, _Address, _Int]
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "edgecs_kernels": (_Address, [_Int]),
    "edgecs_name": (ctypes.c_char_p, [_Address]),
    "edgecs_columns": (_Int, [_Address]),
    "edgecs_connect": (None, [_Address]),
    "edgecs_store": (_Address, [_Address, _Int, _Progress]),
    "edgecs_store_bytes": (ctypes.c_uint64, [_Address]),
    "edgecs_store_failed": (ctypes.c_bool, [_Address]),
    "edgecs_store_free": (None, [_Address]),
    "edgecs_context": (_Address, [_Address, _Int]),
    "edgecs_context_counts": (None, [_Address, _Address]),
    "edgecs_context_forget": (None, [_Address]),
    "edgecs_context_free": (None, [_Address]),
    "edgecs_multiply": (_Int, [*_MULTIPLY, _Address]),
    "edgecs_attend": (_Int, [_Address, _Address, _Long]),
    "edgecs_bandwidth": (ctypes.c_double, [_Address, ctypes.c_size_t, _Int, _Int]),
}


def include_folder() -> Path:
    """The folder of the installed llama.cpp's headers."""
    return Path(lib.__file__).parent.parent / "include"


class Counts(NamedTuple):
    """Numbers of nodes: computed by the kernels, and left to llama.cpp."""

    matrices: int
    attentions: int
    left: int


class KernelSet:
    """The kernels for one instruction set, in a library that stays loaded."""

    def __init__(self, library: ctypes.CDLL, address: int, digest: str) -> None:
        self.library, self.address = library, address
        self.name = library.edgecs_name(address).decode()
        self.columns = int(library.edgecs_columns(address))  # most columns of one call
        self.key = f"{self.name}-{digest}"  # the bits of an answer depend on it

    def multiply(
        self, type_: int, matrix: NDArray[np.uint8], width: int, x: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """x times a matrix of a ggml type.

        matrix: the bytes of `width` weights in every row, [rows, bytes]. x: [columns,
        width], at most as many columns as one call computes. Returns [columns, rows].
        Raises ValueError if no kernel supports these.
        """
        columns, rows = len(x), len(matrix)
        matrix, x = np.ascontiguousarray(matrix), np.ascontiguousarray(x)
        y = np.empty((columns, rows), dtype=np.float32)
        refused = self.library.edgecs_multiply(
            *(self.address, type_, matrix.ctypes.data, matrix.shape[1], rows, width),
            *(x.ctypes.data, columns, y.ctypes.data),
        )
        if refused:
            raise ValueError(f"no kernel for type {type_}, {width} wide, {columns}")
        return y

    def attend(self, attention: Attention, rows: int) -> bool:
        """Compute one attention node, `rows` at a time; False: too many rows."""
        address = ctypes.addressof(attention)
        return not self.library.edgecs_attend(self.address, address, rows)

    def bandwidth(self, size: int, threads: int, repeats: int = 7) -> float:
        """Bytes per second that all threads together read from memory, the median."""
        read = self.library.edgecs_bandwidth(self.address, size, threads, repeats)
        return float(read)


class Attention(ctypes.Structure):
    """`struct Attention` of edgecs/native/kernels.h; strides in bytes."""

    _fields_ = (
        *((name, _Long) for name in ("key_width", "value_width", "rows", "heads")),
        *((name, _Long) for name in ("kv_heads", "cells")),
        *((name, ctypes.c_float) for name in ("scale", "bias", "cap")),
        *((name, _Int) for name in ("key_type", "value_type")),
        *((name, ctypes.c_size_t * 2) for name in ("query", "key", "value", "output")),
        ("mask_row", ctypes.c_size_t),
        *((name, _Address) for name in ("q", "k", "v", "mask", "sinks", "y")),
    )


class PackedWeights:
    """The packed weights of one model, shared by all its contexts.

    They are packed when a context computes for the first time, and freed after the
    contexts. go_on: called after every matrix; False stops packing.
    """

    def __init__(
        self, kernels: KernelSet, threads: int, go_on: Callable[[int], bool]
    ) -> None:
        self.kernels = kernels
        # The callback must outlive the store.
        self._progress = _Progress(go_on)
        library, address = kernels.library, kernels.address
        self.address = library.edgecs_store(address, threads, self._progress)
        if not self.address:
            raise MemoryError

    @property
    def size(self) -> int:
        """Bytes so far."""
        return int(self.kernels.library.edgecs_store_bytes(self.address))

    @property
    def failed(self) -> bool:
        """Whether memory ran out, or packing was stopped."""
        return bool(self.kernels.library.edgecs_store_failed(self.address))

    def close(self) -> None:
        """Free the weights; may be called again."""
        if self.address:
            self.kernels.library.edgecs_store_free(self.address)
            self.address = None


class Nodes:
    """Data of one llama.cpp context whose nodes are computed by the kernels.

    threads: most threads that compute. It is freed after the context.
    """

    def __init__(self, packed: PackedWeights, threads: int) -> None:
        self._library = packed.kernels.library
        self._address = self._library.edgecs_context(packed.address, threads)
        if not self._address:
            raise MemoryError

    def enter(self, params: lib.llama_context_params) -> None:
        """Set the callback in the parameters of a context to be opened."""
        look = ctypes.cast(self._library.edgecs_eval, _Address).value or 0
        params.cb_eval = lib.ggml_backend_sched_eval_callback(look)
        params.cb_eval_user_data = self._address

    @property
    def counts(self) -> Counts:
        """Counts over all graphs so far; a graph that llama.cpp reuses counts once."""
        counts = (ctypes.c_uint64 * 3)()
        self._library.edgecs_context_counts(self._address, counts)
        return Counts(*counts)

    def forget(self) -> None:
        """Must be called after a failed call of llama.cpp: its graph may be freed."""
        self._library.edgecs_context_forget(self._address)

    def free(self) -> None:
        """Free the data; may be called again."""
        if self._address:
            self._library.edgecs_context_free(self._address)
            self._address = None


def kernel_sets(file: Path) -> list[KernelSet]:
    """The kernels that this processor supports, the best first.

    Raises OSError for a file that is not a library of edgecs.
    """
    library = _loaded(file)
    sets = list[KernelSet]()
    while address := library.edgecs_kernels(len(sets)):
        sets.append(KernelSet(library, address, file.stem.rpartition("-")[2]))
    return sets


@functools.cache
def _loaded(file: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(os.fspath(file))
    try:
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        base = ctypes.CDLL(_BASE, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        functions = [ctypes.cast(getattr(base, name), _Address).value for name in _GGML]
    except AttributeError as error:
        raise OSError(f"a function is missing: {error}") from error
    library.edgecs_connect((_Address * len(functions))(*functions))
    return library


def main() -> None:
    """`python -m edgecs.engines.llama.kernels`: compile next to the sources."""
    try:
        print(build.compile_library(include_folder(), build.SOURCES, print))
    except BuildError as error:  # not an error: llama.cpp's kernels are used
        print(f"the kernels are not compiled, llama.cpp's are used: {error}")


if __name__ == "__main__":
    main()
