"""The bytes of a GGUF's tokens, for grammars; and llama.cpp's own grammars.

The latter are for benchmarks only: edgecs masks with `edgecs.grammar.mask`, which is
faster by two orders of magnitude.
"""

from __future__ import annotations

import ctypes

import llama_cpp as lib
import numpy as np
from llama_cpp.llama_grammar import json_schema_to_gbnf
from numpy.typing import NDArray

from edgecs.errors import ConfigError
from edgecs.grammar.trie import TokenTrie

_ROOM = 1 << 16  # bytes; longer tokens are treated as empty


def token_trie(vocab: lib.llama_vocab_p) -> TokenTrie:
    """The trie of a loaded vocabulary; building takes 0.3 s for 49,000 tokens.

    Control tokens have no text. User-defined tokens in angle brackets are treated like
    them: a <tool_call> is not text inside a JSON string.
    """
    size = lib.llama_vocab_n_tokens(vocab)
    pieces = _pieces(vocab, size)
    for token, text in enumerate(pieces):
        if text[:1] == b"<" and text[-1:] == b">":
            attributes = lib.llama_vocab_get_attr(vocab, token)
            if attributes & lib.LLAMA_TOKEN_ATTR_USER_DEFINED:
                pieces[token] = b""
    ends = [token for token in range(size) if lib.llama_vocab_is_eog(vocab, token)]
    return TokenTrie(pieces, ends)


def _pieces(vocab: lib.llama_vocab_p, size: int) -> list[bytes]:
    """The bytes of every token. With plain integers a call takes half the time."""
    kinds = (ctypes.c_void_p, ctypes.c_int32) * 2
    prototype = ctypes.CFUNCTYPE(ctypes.c_int32, *kinds, ctypes.c_int32, ctypes.c_bool)
    function = ctypes.cast(lib.llama_cpp._lib.llama_token_to_piece, ctypes.c_void_p)
    assert function.value
    render = prototype(function.value)
    buffer = ctypes.create_string_buffer(_ROOM)
    at, view = ctypes.addressof(buffer), memoryview(buffer)
    lengths = (
        render(vocab, token, at, _ROOM, 0, False) for token in range(size)
    )  # negative: it does not fit
    return [view[:length].tobytes() if length > 0 else b"" for length in lengths]


class LlamaGrammar:
    """llama.cpp's grammar sampler, for comparison."""

    def __init__(self, vocab: lib.llama_vocab_p, schema: str) -> None:
        rules = json_schema_to_gbnf(schema).encode()
        self._sampler = lib.llama_sampler_init_grammar(vocab, rules, b"root")
        if not self._sampler:
            raise ConfigError("llama.cpp cannot use this grammar: give another one")
        size = lib.llama_vocab_n_tokens(vocab)
        kinds = [("id", np.int32), ("logit", np.float32), ("p", np.float32)]
        self._candidates = np.zeros(size, dtype=np.dtype(kinds))
        self._candidates["id"] = np.arange(size)

    def mask(self) -> NDArray[np.bool_]:
        """The tokens that are allowed next, bool [vocabulary]."""
        self._candidates["logit"] = 0
        pointer = self._candidates.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
        array = lib.llama_token_data_array(pointer, self._candidates.size, -1, False)
        lib.llama_sampler_apply(self._sampler, ctypes.byref(array))
        allowed: NDArray[np.bool_] = np.isfinite(self._candidates["logit"])
        return allowed

    def accept(self, token: int) -> None:
        """Advance the grammar by a token."""
        lib.llama_sampler_accept(self._sampler, token)

    def close(self) -> None:
        """Free the sampler; may be called again."""
        if self._sampler:
            lib.llama_sampler_free(self._sampler)
            self._sampler = None
