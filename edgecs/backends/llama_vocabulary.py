"""The tokenizer that lives in a GGUF, as a `Tokenizer`."""

from __future__ import annotations

import ctypes

import llama_cpp as lib
import numpy as np

from edgecs.context import Tokens
from edgecs.errors import ConfigError, ModelError


class LlamaVocabulary:
    """Text to ids and back with the vocabulary of a loaded model."""

    def __init__(self, model: lib.llama_model_p) -> None:
        self._vocab = vocab = lib.llama_model_get_vocab(model)
        self.closed = False
        self._buffer = ctypes.create_string_buffer(256)
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

    def encode(self, text: str, *, document: bool = True) -> Tokens:
        """Ids of `text`, special tokens parsed, int32 [n].

        document: add BOS (and what else the model wants around a text).
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
                self._vocab, data, len(data), pointer, ids.size, document, True
            )
            if count >= 0:
                return ids[:count].copy()
            ids = np.empty(-count, dtype=np.int32)

    def piece(self, token: int) -> bytes:
        """What a token adds to the text; control tokens add nothing."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._render(token, special=False)
        return known

    def _text(self, token: int) -> str:
        if token < 0:
            return ""
        return self._render(token, special=True).decode(errors="replace")

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise ModelError("the model of this vocabulary was closed: load it again")

    def _render(self, token: int, *, special: bool) -> bytes:
        self._refuse_if_closed()
        while True:
            buffer = self._buffer
            count = lib.llama_token_to_piece(
                self._vocab, token, buffer, len(buffer), 0, special
            )
            if count >= 0:
                return ctypes.string_at(buffer, count)
            self._buffer = ctypes.create_string_buffer(-count)
