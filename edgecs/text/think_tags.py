"""Puts thoughts of any form between <think> tags, as terminals and files have them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, Self, TypeVar

from edgecs.text.thoughts import CLOSES, OPENS, THINK, Parts, Separator, Tags, Thoughts


class Piece(Protocol):
    """A part of an answer, as a named tuple."""

    @property
    def text(self) -> str:
        """The text that became certain with it."""

    def _replace(self, *, text: str = ...) -> Self:
        """The same with another text."""


P = TypeVar("P", bound=Piece)


class ThinkTags:
    """An answer as text, with its thoughts between <think> tags.

    separator: separates the thoughts of the model's own form; None: that form is this
    one, and the text is left as it is. Thoughts that are cut off are not closed.

    >>> from edgecs.text.thoughts import GEMMA
    >>> tags = ThinkTags(Thoughts(GEMMA))
    >>> tags.feed("<|channel>thought\\nHm<channel|>Hi") + tags.flush()
    '<think>\\nHm\\n</think>\\n\\nHi'
    """

    def __init__(self, separator: Separator | None) -> None:
        self._separator = separator
        self._thinking = False
        self._last = "\n"  # the last letter

    def feed(self, text: str) -> str:
        """The text that is certain after more text."""
        if self._separator is None:
            return text
        # Letter by letter, as `Parts` do not tell which of them comes first.
        return "".join(self._written(self._separator.feed(letter)) for letter in text)

    def flush(self) -> str:
        """The rest, at the end of the text; may be called again."""
        return self._written(self._separator.flush()) if self._separator else ""

    def over(
        self, pieces: Iterable[P], ends: Callable[[P], bool] = lambda piece: False
    ) -> Iterator[P]:
        """Pieces with these texts.

        ends: whether a piece is the last one. Text that is held back when no more come
        is in another one.
        """
        last = None
        for piece in pieces:
            text = self.feed(piece.text)
            last = piece._replace(text=text + (self.flush() if ends(piece) else ""))
            yield last
        if last is not None and (rest := self.flush()):
            yield last._replace(text=rest)

    def _written(self, parts: Parts) -> str:
        return self._part(parts.thought, thought=True) + self._part(
            parts.answer, thought=False
        )

    def _part(self, text: str, *, thought: bool) -> str:
        if not text:
            return ""
        mark = ""
        if thought != self._thinking:
            line = "" if self._last == "\n" else "\n"
            mark = f"{line}{OPENS}\n" if thought else f"{line}{CLOSES}\n\n"
        self._thinking, self._last = thought, text[-1]
        return mark + text


def without_thoughts(text: str, tags: Tags = THINK) -> str:
    """The answer in a whole text; the prompt may have opened its thoughts.

    >>> without_thoughts("<think>\\nHm\\n</think>\\n\\nHi")
    'Hi'
    """
    thoughts = Thoughts(tags, open=tags.closes in text and tags.opens not in text)
    return thoughts.feed(text).answer + thoughts.flush().answer
