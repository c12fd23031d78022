"""The functions of llama.cpp that heads need, some of them C++ and not in its headers.

They have mangled names, by the compiler. A build may lack them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import llama_cpp as lib

from edgecs.engines.llama import library
from edgecs.errors import ModelError

_Context, _Model = lib.llama_context_p_ctypes, lib.llama_model_p_ctypes
_UInt, _Int, _Bool = ctypes.c_uint32, ctypes.c_int32, ctypes.c_bool
# Addresses, because creating a pointer object takes longer than the call.
_Address = ctypes.c_void_p
# The arguments in the names of GCC and Clang, and in those of Visual C++.
_FUNCTIONS: dict[str, tuple[list[Any], Any, str, str]] = {
    "llama_set_embeddings_layer_inp": (
        [_Context, _UInt, _Bool],
        None,
        "P13llama_contextjb",
        "YAXPEAUllama_context@@I_N@Z",
    ),
    "llama_get_embeddings_layer_inp": (
        [_Context, _UInt],
        _Address,
        "P13llama_contextj",
        "YAPEAMPEAUllama_context@@I@Z",
    ),
    "llama_set_embeddings_nextn": (
        [_Context, _Bool, _Bool],
        None,
        "P13llama_contextbb",
        "YAXPEAUllama_context@@_N1@Z",
    ),
    "llama_get_embeddings_nextn": (
        [_Context],
        _Address,
        "P13llama_context",
        "YAPEAMPEAUllama_context@@@Z",
    ),
    "llama_set_nextn_layer_offset": (
        [_Context, _Int],
        None,
        "P13llama_contexti",
        "YAXPEAUllama_context@@H@Z",
    ),
}


class Symbols(NamedTuple):
    """The functions, under short names."""

    set_layer: Callable[[Any, int, bool], None]  # context, layer, whether to record
    layer: Callable[[Any, int], int | None]  # context, layer: address of its rows
    set_next: Callable[[Any, bool, bool], None]  # context, on, of output rows only
    next: Callable[[Any], int | None]  # context: address of its rows
    set_head: Callable[[Any, int], None]  # context, which of several MTP heads


@cache
def symbols() -> Symbols:
    """The functions; raises ModelError if this build of llama.cpp lacks one."""
    return Symbols(*(_function(name) for name in _FUNCTIONS))


def _function(name: str) -> Callable[..., Any]:
    arguments, result, itanium, msvc = _FUNCTIONS[name]
    for mangled in (name, f"_Z{len(name)}{name}{itanium}", f"?{name}@@{msvc}"):
        try:
            found = lib.llama_cpp._lib[mangled]
        except AttributeError:
            continue
        found.argtypes, found.restype = arguments, result
        function: Callable[..., Any] = found
        return function
    raise ModelError(
        f"this build of llama.cpp ({library.version()}) has no {name}, which heads "
        "need: install another one, or use --draft none"
    )
