"""Converts bytes of tokens to text: whole characters only, never part of a stop string.

`Tokenizer` is the protocol of a model's tokenizer; `TextStream` streams its pieces.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from edgecs.core.context import Tokens


class Tokenizer(Protocol):
    """Text to ids and back. Ids are the target's."""

    ends: frozenset[int]  # tokens that end a generation
    chat_template: str | None  # Jinja source, None: the model has none
    bos: str  # text of the token that opens a document, "" if there is none
    eos: str  # text of the token that closes it

    @property
    def controls(self) -> frozenset[str]:
        """Spellings that `encode` takes for control tokens."""

    def encode(self, text: str, *, document: bool = True) -> Tokens:
        """Ids of `text`, special tokens parsed, int32 [n].

        document: the text begins a document, so a BOS is prepended if the model uses
        one.
        """

    def pieces(self) -> list[bytes]:
        """The text of every token, special tokens as written, without padding."""

    def piece(self, token: int) -> bytes:
        """The text of a token in an answer; control tokens have none."""

    def spelling(self, token: int) -> str:
        """The text of a token in a template, also of control tokens."""


class TextStream:
    """Collects pieces, and returns text as soon as it cannot change any more.

    Text is held back while its last character is incomplete or while it may begin a
    stop string. The text of `push` and `flush` together is the answer, without a stop
    string and the text after it.

    >>> stream = TextStream(stop=["END"])
    >>> [stream.push(piece) for piece in (b"caf\\xc3", b"\\xa9 E", b"N", b"D.")]
    ['caf', 'é ', '', '']
    >>> stream.stopped, stream.stop
    (True, 'END')
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(filter(None, stop))
        self._waiting = ""
        self.stop: str | None = None  # the stop string that was found

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self.stop is not None

    def push(self, piece: bytes) -> str:
        """The text that has become certain with this piece."""
        return self._release(self._decoder.decode(piece))

    def flush(self) -> str:
        """The text still held back, at the end of an answer."""
        text = self._release(self._decoder.decode(b"", final=True)) + self._waiting
        self._waiting = ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        if not self._stop:
            return text
        self._waiting += text
        found = [(self._waiting.find(stop), stop) for stop in self._stop]
        # The stop that is complete first counts, however the text was cut in pieces.
        ends = [(at + len(stop), at, stop) for at, stop in found if at >= 0]
        if ends:
            _, at, self.stop = min(ends)
            text, self._waiting = self._waiting[:at], ""
            return text
        keep = len(self._waiting) - self._stop_begun()
        text, self._waiting = self._waiting[:keep], self._waiting[keep:]
        return text

    def _stop_begun(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        for length in range(min(self._longest, len(self._waiting)), 0, -1):
            if any(stop.startswith(self._waiting[-length:]) for stop in self._stop):
                return length
        return 0

    @property
    def _longest(self) -> int:
        return max(map(len, self._stop), default=1) - 1
