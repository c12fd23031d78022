"""Separates the thinking block of a reasoning model from its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Parts(NamedTuple):
    """New text of the thinking block and of the answer; either may be empty."""

    thought: str
    answer: str


class Separator(Protocol):
    """Separates thoughts from the answer as the text arrives."""

    @property
    def open(self) -> bool:
        """Whether the text so far ends within thoughts."""

    def feed(self, text: str) -> Parts:
        """The parts that are certain after more text."""

    def flush(self) -> Parts:
        """The rest, at the end of the text."""


@dataclass(frozen=True)
class Tags:
    """What encloses thoughts in the answers of a model.

    anywhere: an answer may have several blocks; otherwise it has one, at its start.
    markers: texts of the tags that may be control tokens.
    """

    opens: str
    closes: str
    anywhere: bool = False
    markers: tuple[str, ...] = ()

    def opened(self, prompt: str) -> bool:
        """Whether the end of a prompt has opened a block."""
        return prompt.rstrip().endswith(self.opens)


CHANNELS = "<|channel"  # in the template of every other form than <think>
OPENS, CLOSES = "<think>", "</think>"
THINK = Tags(OPENS, CLOSES, markers=(OPENS, CLOSES))
GEMMA = Tags(
    "<|channel>thought",
    "<channel|>",
    anywhere=True,
    markers=("<|channel>", "<channel|>"),
)


class Thoughts:
    """Separates blocks of thoughts between tags.

    open: whether a block is open; some templates open it themselves. Line breaks after
    a block belong to neither part, and with `anywhere` also those at its start.

    >>> thoughts = Thoughts()
    >>> [tuple(thoughts.feed(text)) for text in ("<th", "ink>a</", "think>\\n\\nb")]
    [('', ''), ('a', ''), ('', 'b')]
    """

    def __init__(self, tags: Tags = THINK, *, open: bool = False) -> None:
        self.open = open
        self._tags = tags
        self._begun = False  # whether the answer has begun
        self._blank = open and tags.anywhere  # whether line breaks are being skipped
        self._text = ""  # not yet certain

    def feed(self, text: str) -> Parts:
        """The parts that are certain after more text."""
        self._text += text
        thought, answer = list[str](), list[str]()
        more = True
        while more:
            self._skip()
            if self.open:
                more = self._take(self._tags.closes, thought)
            elif self._tags.anywhere:
                more = self._take(self._tags.opens, answer)
            elif not self._begun:
                more = self._start()
            else:
                answer.append(self._text)
                self._text, more = "", False
        return Parts("".join(thought), "".join(answer))

    def flush(self) -> Parts:
        """The rest, at the end of the text."""
        rest, self._text = self._text, ""
        if rest.startswith(self._tags.markers):  # a tag that was cut off
            rest = ""
        return Parts(rest, "") if self.open else Parts("", rest)

    def _skip(self) -> None:
        if self._blank:
            self._text = self._text.lstrip("\n")
            self._blank = not self._text

    def _take(self, tag: str, to: list[str]) -> bool:
        """Take the text before a tag, and the tag; whether it has arrived."""
        at = self._text.find(tag)
        if at < 0:
            certain = len(self._text) - _overlap(self._text, tag)
            to.append(self._text[:certain])
            self._text = self._text[certain:]
            return False
        to.append(self._text[:at])
        self._text = self._text[at + len(tag) :]
        self.open, self._begun = not self.open, True
        self._blank = self._tags.anywhere or not self.open
        return True

    def _start(self) -> bool:
        """Decide how the answer starts; whether that is certain."""
        opens, start = self._tags.opens, self._text.lstrip()
        if not opens.startswith(start[: len(opens)]):
            self._begun = True
        elif len(start) < len(opens):
            return False
        else:
            self.open = True
            self._text = start[len(opens) :]
        return True


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of a text that may start a mark."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-size:]):
            return size
    return 0
