"""How an answer looks while it comes: Markdown, thoughts, what terminals would obey.

Nothing that was written is ever written again, so the stream neither flickers nor
fights with a terminal that is resized: Markdown keeps its marks and gets its looks as
it passes by.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO

import click

from edgecs.session import Token

OPENS, _CLOSES = "<think>", "</think>"
_HEADING = re.compile(r"[ \t]*#{1,6} ")
_SPECIAL = re.compile(r"(\*\*|`|\n)")
# What a model may write that a terminal would obey: all control characters but
# newline and tab, which are shown as pictures.
_CONTROL = {code: 0x2400 + code for code in range(32) if code not in (9, 10)}
_CONTROL |= {127: 0x2421} | dict.fromkeys(range(128, 160), 65533)


def harmless(text: str) -> str:
    """Text that cannot move the cursor, change colours or ring.

    >>> harmless("a\\x1b[31mb\\n")
    'a␛[31mb\\n'
    """
    return text.translate(_CONTROL)


def for_terminal(tokens: Iterable[Token], stream: TextIO) -> Iterator[Token]:
    """Tokens whose text is harmless if a terminal reads it; a pipe gets all of it."""
    guarded = stream.isatty()
    for token in tokens:
        yield token._replace(text=harmless(token.text)) if guarded else token


class Markdown:
    """Gives Markdown its looks while it streams; a chunk may end anywhere.

    Headings and `**text**` become bold, code coloured; the marks stay.
    """

    def __init__(self) -> None:
        self._line = ""  # the line so far
        self._waiting = ""  # a star that may be the first of two
        self._fence = self._code = self._bold = False

    def feed(self, text: str) -> str:
        """The text with escape codes; every chunk ends with plain looks."""
        text, self._waiting = self._waiting + text, ""
        if text.endswith("*") and not text.endswith("**"):
            text, self._waiting = text[:-1], "*"
        return "".join(self._part(part) for part in _SPECIAL.split(text) if part)

    def flush(self) -> str:
        """What was waiting for more, at the end."""
        rest, self._waiting = self._waiting, ""
        return self._styled(rest)

    def _part(self, part: str) -> str:
        if part == "\n":
            return self._newline()
        opens = not self._fence and not (self._code and part == "**")
        before = self._styled(part) if not (opens and part in ("**", "`")) else ""
        self._line += part
        if before:
            return before
        if part == "**":
            self._bold = not self._bold
            return click.style(part, bold=True)
        self._code = not self._code
        return click.style(part, fg="cyan")

    def _newline(self) -> str:
        if self._line.lstrip().startswith("```"):
            self._fence = not self._fence
        self._line, self._code, self._bold = "", False, False
        return "\n"

    def _styled(self, text: str) -> str:
        if not text:
            return ""
        line = self._line + text
        if self._fence or self._code or line.lstrip().startswith("```"):
            return click.style(text, fg="cyan")
        if self._bold:
            return click.style(text, bold=True)
        heading = _HEADING.match(line)
        if heading is None:
            return text
        marks = max(0, heading.end() - len(self._line))  # they may be in this chunk
        title = text[marks:]
        return text[:marks] + (click.style(title, bold=True) if title else "")


class Thoughts:
    """Folds what a reasoning model thinks before it answers.

    `feed` gives the answer alone. `open` says whether it is thinking now; some
    templates open the thought themselves.
    """

    def __init__(self, *, open: bool = False) -> None:
        self.open = open
        self.characters = 0  # that were thought
        self._begun = False  # whether the answer has begun
        self._blank = False  # whether blank lines behind a thought are being skipped
        self._text = ""

    def feed(self, text: str) -> str:
        """What is not a thought, as soon as that is certain."""
        if self._blank:
            text = text.lstrip("\n")
            self._blank = not text
        if self._begun:
            return text
        self._text += text
        if not self.open:
            start = self._text.lstrip()
            if OPENS.startswith(start[: len(OPENS)]):
                if len(start) < len(OPENS):
                    return ""
                self.open, self._text = True, start[len(OPENS) :]
            else:
                return self._begin(self._text)
        at = self._text.find(_CLOSES)
        if at < 0:
            kept = len(_CLOSES) - 1
            self.characters += max(0, len(self._text) - kept)
            self._text = self._text[-kept:]
            return ""
        self.characters += at
        rest = self._text[at + len(_CLOSES) :].lstrip("\n")
        self.open, self._blank = False, not rest
        return self._begin(rest)

    def flush(self) -> str:
        """What might have been the beginning of a thought, at the end."""
        if self._begun or self.open:
            return ""
        return self._begin(self._text)

    def _begin(self, text: str) -> str:
        self._begun, self._text = True, ""
        return text


def shown(
    tokens: Iterable[Token], *, looks: bool, folds: bool, thinks: bool = False
) -> Iterator[str]:
    """What to write for an answer, piece by piece.

    looks: Markdown gets its looks. folds: thoughts are left out, and how much was
    thought is said on stderr. thinks: it begins within a thought.
    """
    thoughts = Thoughts(open=thinks) if folds else None
    markdown = Markdown() if looks else None
    thinking = False
    for token in tokens:
        text = token.text
        if thoughts:
            text = thoughts.feed(text)
            if thoughts.open and not thinking:
                thinking = True
                _aside("thinking ...")
            elif thinking and not thoughts.open:
                thinking = False
                _aside(f" {thoughts.characters} characters, folded\n")
        yield markdown.feed(text) if markdown else text
    if thinking:
        _aside(" not finished\n")
    if thoughts:
        text = thoughts.flush()
        yield markdown.feed(text) if markdown else text
    if markdown:
        yield markdown.flush()


def _aside(text: str) -> None:
    click.secho(text, err=True, dim=True, nl=False)
    sys.stderr.flush()
