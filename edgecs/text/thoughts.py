"""Separates the thinking block of a reasoning model from its answer."""

from __future__ import annotations

from typing import NamedTuple

OPENS, CLOSES = "<think>", "</think>"


class Parts(NamedTuple):
    """New text of the thinking block and of the answer; either may be empty."""

    thought: str
    answer: str


class Thoughts:
    """The block is at the start of an answer, between OPENS and CLOSES.

    open: whether the block is open; some templates open it themselves.

    >>> thoughts = Thoughts()
    >>> [tuple(thoughts.feed(text)) for text in ("<th", "ink>a</", "think>\\n\\nb")]
    [('', ''), ('a', ''), ('', 'b')]
    """

    def __init__(self, *, open: bool = False) -> None:
        self.open = open
        self._begun = False  # whether the answer has begun
        self._blank = False  # whether blank lines after the block are being skipped
        self._text = ""  # not yet certain

    def feed(self, text: str) -> Parts:
        """The parts that are certain after more text."""
        if self._blank:
            text = text.lstrip("\n")
            self._blank = not text
        if self._begun:
            return Parts("", text)
        self._text += text
        if not self.open:
            start = self._text.lstrip()
            if not OPENS.startswith(start[: len(OPENS)]):
                return Parts("", self._begin(self._text))
            if len(start) < len(OPENS):
                return Parts("", "")
            self.open, self._text = True, start[len(OPENS) :]
        at = self._text.find(CLOSES)
        if at < 0:
            certain = len(self._text) - _overlap(self._text, CLOSES)
            thought, self._text = self._text[:certain], self._text[certain:]
            return Parts(thought, "")
        thought, rest = self._text[:at], self._text[at + len(CLOSES) :].lstrip("\n")
        self.open, self._blank = False, not rest
        return Parts(thought, self._begin(rest))

    def flush(self) -> Parts:
        """The rest, at the end of the text."""
        rest, self._text = self._text, ""
        return Parts(rest, "") if self.open else Parts("", rest)

    def _begin(self, text: str) -> str:
        self._begun, self._text = True, ""
        return text


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of a text that may start a mark."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-size:]):
            return size
    return 0
