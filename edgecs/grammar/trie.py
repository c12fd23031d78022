"""The texts of a vocabulary, as llguidance searches them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import llguidance
import numpy as np

from edgecs.core.context import Tokens
from edgecs.errors import ConfigError
from edgecs.text.detokenizer import Tokenizer

LONGEST = 512  # bytes: longer tokens, such as runs of spaces, are not needed


class TokenTrie:
    """The texts of the tokens of a vocabulary, as llguidance's search tree.

    It takes 0.2 s for 49,000 tokens and 0.5 s for 152,000, so it is made once per
    model. pieces: [size], the text of each token, b"" for one without text, such as a
    control token, which then matches only a part of a grammar that names its id. ends:
    tokens that end an answer, whatever their text.
    """

    def __init__(self, pieces: Sequence[bytes], ends: Collection[int]) -> None:
        if not ends:
            raise ConfigError(
                "this model has no token that ends an answer, so no answer can match "
                "a grammar: use another model"
            )
        self.size = len(pieces)
        self.ends = frozenset(ends)
        # No character begins with 0xFF, and to llguidance it marks a special token.
        texts = [
            b"" if len(text) > LONGEST or text[:1] == b"\xff" else text
            for text in pieces
        ]
        for end in self.ends:
            texts[end] = b""
        for token, text in enumerate(texts):
            if not text and token not in self.ends:
                texts[token] = b"\xff[%d]" % token
        # llguidance's own end of text comes after the vocabulary: a grammar may end
        # with any token of `ends`.
        self.texts = [*texts, b"", *(bytes([byte]) for byte in range(256))]
        self.tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Words(self.texts, self.size))
        )

    def of_bytes(self, text: bytes) -> Tokens:
        """A text as ids that only a grammar knows: one below -1 for each byte."""
        return -2 - np.frombuffer(text, np.uint8).astype(np.int32)

    def may_match(self, token: int) -> bool:
        """Whether an id may be a part of a grammar: it exists and ends no answer."""
        if token < 0:
            return -258 < token < -1
        return token < self.size and token not in self.ends

    def inner(self, token: int) -> int:
        """The id that llguidance has for one that may match."""
        return token if token >= 0 else self.size - 1 - token

    @staticmethod
    def of(tokenizer: Tokenizer, size: int) -> TokenTrie:
        """The trie of a tokenizer with the ids below `size`."""
        return TokenTrie(
            [tokenizer.piece(token) for token in range(size)], tokenizer.ends
        )


class _Words:
    """A tokenizer for llguidance, which never tokenises with it: no_forcing."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], end: int) -> None:
        self.tokens = tokens
        self.eos_token_id = end

    def __call__(self, text: bytes) -> list[int]:
        return []
