"""The tokenizer of a GGUF, as a `Tokenizer`."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import llama_cpp as lib
import numpy as np

from edgecs.core.context import Tokens
from edgecs.core.fim_tokens import FimTokens
from edgecs.core.reading import check_model
from edgecs.engines.llama import library  # noqa: F401  redirects llama.cpp's log
from edgecs.errors import ConfigError, ModelError
from edgecs.hub.compatibility import real_size

if TYPE_CHECKING:
    from edgecs.grammar.trie import TokenTrie

_LIKE_CONTROL = re.compile(r"<\|\w+\|>")
_USUAL = 256  # bytes that are enough for the text of most tokens


class LlamaVocabulary:
    """Converts text to ids and back with the vocabulary of a loaded model.

    It may be used by several threads.
    """

    def __init__(self, model: lib.llama_model_p) -> None:
        self._vocab = vocab = lib.llama_model_get_vocab(model)
        self.closed = False
        self.size: int = lib.llama_vocab_n_tokens(vocab)
        self.ends = frozenset(
            token for token in range(self.size) if lib.llama_vocab_is_eog(vocab, token)
        )
        self.bos = self._text(lib.llama_vocab_bos(vocab))
        self.eos = self._text(lib.llama_vocab_eos(vocab))
        template = lib.llama_model_chat_template(model, None)
        self.chat_template = (
            None if template is None else template.decode(errors="replace")
        )
        self._pieces: dict[int, bytes] = {}

    def encode(
        self, text: str, *, document: bool = True, special: bool = True
    ) -> Tokens:
        """Ids of `text`, int32 [n].

        document: add BOS (and other tokens that the model expects around a text).
        special: whether spellings of control tokens become these.
        """
        self._refuse_if_closed()
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"the text is not valid Unicode at character {error.start} (a lone "
                "surrogate): was it read with the wrong encoding?"
            ) from error
        if self.size == 0 or lib.llama_vocab_type(self._vocab) == 0:
            raise ConfigError("this model has no tokenizer: it cannot take text")
        ids = np.empty(len(data) + 16, dtype=np.int32)
        while True:
            pointer = ids.ctypes.data_as(lib.llama_token_p)
            count = lib.llama_tokenize(
                self._vocab, data, len(data), pointer, ids.size, document, special
            )
            if count >= 0:
                return ids[:count].copy()
            ids = np.empty(-count, dtype=np.int32)

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to the text; control tokens add nothing."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._render(token, special=False)
        return known

    def spelling(self, token: int) -> str:
        """The text of a token in a template, also of control tokens."""
        return self._text(token)

    def pieces(self) -> list[bytes]:
        """The text of every token, including special ones, without trailing padding.

        Padding tokens, which only round up the matrix sizes, are marked as unused in
        the file.
        """
        ids, unused = range(self.size), lib.LLAMA_TOKEN_ATTR_UNUSED
        texts = [self._render(token, special=True) for token in ids]
        flags = [bool(lib.llama_vocab_get_attr(self._vocab, t) & unused) for t in ids]
        return texts[: real_size(texts, flags)]

    @cached_property
    def controls(self) -> frozenset[str]:
        """Spellings that `encode` takes for control tokens.

        llama.cpp makes those of gpt-oss, such as <|start|>, tokens with a text.
        """
        kinds = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        others = lib.LLAMA_TOKEN_ATTR_USER_DEFINED
        self._refuse_if_closed()
        found = set[str]()
        for token in range(self.size):
            kind = lib.llama_vocab_get_attr(self._vocab, token)
            if kind & (kinds | others):
                data = lib.llama_vocab_get_text(self._vocab, token)
                text = data.decode(errors="replace")
                if text and (kind & kinds or _LIKE_CONTROL.fullmatch(text)):
                    found.add(text)
        return frozenset(found)

    @cached_property
    def fim(self) -> FimTokens | None:
        """The tokens for filling in; None: the model cannot."""
        self._refuse_if_closed()
        prefix, suffix, middle, repository, separator = (
            int(find(self._vocab))
            for find in (
                lib.llama_vocab_fim_pre,
                lib.llama_vocab_fim_suf,
                lib.llama_vocab_fim_mid,
                lib.llama_vocab_fim_rep,
                lib.llama_vocab_fim_sep,
            )
        )
        if min(prefix, suffix, middle) < 0:
            return None
        return FimTokens(
            prefix,
            suffix,
            middle,
            repository if repository >= 0 else None,
            separator if separator >= 0 else None,
        )

    @cached_property
    def trie(self) -> TokenTrie:
        """The trie of all tokens, for grammars; built at first use."""
        from edgecs.engines.llama.token_bytes import token_trie

        return token_trie(self._vocab)

    def _text(self, token: int) -> str:
        if token < 0:
            return ""
        return self._render(token, special=True).decode(errors="replace")

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise ModelError("the model of this vocabulary was closed: load it again")

    def _render(self, token: int, *, special: bool) -> bytes:
        self._refuse_if_closed()
        size = _USUAL
        while True:
            # One for each call: a server's threads render at the same time.
            buffer = ctypes.create_string_buffer(size)
            count = lib.llama_token_to_piece(
                self._vocab, token, buffer, size, 0, special
            )
            if count >= 0:
                return ctypes.string_at(buffer, count)
            size = -count


def read_pieces(gguf: Path) -> list[bytes]:
    """`LlamaVocabulary.pieces` of a file, without its weights; raises ModelError."""
    with open_vocabulary(gguf) as vocabulary:
        return vocabulary.pieces()


@contextmanager
def open_vocabulary(gguf: Path) -> Iterator[LlamaVocabulary]:
    """The tokenizer of a file, without its weights; raises ModelError."""
    from edgecs.engines.llama.model_trial import refuse_fatal

    check_model(gguf)
    refuse_fatal(gguf)
    with load_vocabulary(gguf) as vocabulary:
        yield vocabulary


@contextmanager
def load_vocabulary(gguf: Path) -> Iterator[LlamaVocabulary]:
    """Like `open_vocabulary`, without the test whether the file crashes llama.cpp."""
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(os.fsencode(gguf), params)
    if model is None:
        raise ModelError(f"llama.cpp cannot read the tokenizer of {gguf}")
    vocabulary = LlamaVocabulary(model)
    try:
        yield vocabulary
    finally:
        vocabulary.closed = True
        lib.llama_model_free(model)
