"""The metadata of a GGUF in memory, without its vocabulary."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

import llama_cpp as lib

Value = str | int | float | bool

_LEFT_OUT = re.compile(
    r"tokenizer\.ggml\.(tokens|scores|token_type|merges)|.*template.*"
)
_LONGEST = 1024  # bytes of a value; longer ones are left out
_INTEGER = re.compile(r"-?\d{1,19}")
_NUMBER = re.compile(r"-?\d{1,19}\.\d{1,19}(e[+-]?\d{1,3})?")
_WORDS = {"true": True, "false": False}


def read_metadata(handle: lib.llama_model_p | None) -> Mapping[str, Value]:
    """The keys of a model and their values; long texts and arrays are left out."""
    found: dict[str, Value] = {}
    for i in range(lib.llama_model_meta_count(handle)):
        key = _text(partial(lib.llama_model_meta_key_by_index, handle, i))
        value = _text(partial(lib.llama_model_meta_val_str_by_index, handle, i))
        if key and value is not None and not _LEFT_OUT.fullmatch(key):
            found[key] = _typed(value)
    return found


def file_type(handle: lib.llama_model_p | None) -> str:
    """The name of the types of its weights, such as Q4_K_M; "unknown"."""
    name = lib.llama_ftype_name(lib.llama_model_ftype(handle))
    return _short(name.decode("ascii", "replace") if name else "")


def _short(name: str) -> str:
    """The usual name for llama.cpp's one.

    >>> [_short(name) for name in ("Q4_K - Medium", "all F32", "IQ2_XXS - 2.0625 bpw")]
    ['Q4_K_M', 'F32', 'IQ2_XXS']
    """
    name, _, more = name.removeprefix("all ").partition(" - ")
    size = f"_{more[0]}" if more.split(" ")[0] in ("Small", "Medium", "Large") else ""
    return f"{name}{size}" or "unknown"


def _text(write: Callable[[bytes, int], int]) -> str | None:
    """What a function writes into a buffer; None: it has no room for that."""
    buffer = bytes(_LONGEST)
    size = write(buffer, len(buffer))
    if not 0 <= size < _LONGEST:
        return None
    return buffer[:size].decode("utf-8", "replace")


def _typed(text: str) -> Value:
    """A number or a truth value where the text is one.

    >>> [_typed(text) for text in ("32", "1e5", "0.5", "true", "llama")]
    [32, '1e5', 0.5, True, 'llama']
    """
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    return _WORDS.get(text, text)
