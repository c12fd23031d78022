"""Renders an answer while it streams: Markdown, thinking blocks, word wrap.

Output is never rewritten, so it does not flicker and survives a resize of the terminal:
Markdown keeps its marks and is styled in passing, and a word is held back until it is
complete.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from wcwidth import wcswidth

from edgecs.session.answer import Token
from edgecs.text.thoughts import Separator
from edgecs.toolcalls.form import AnswerForm
from edgecs_cli.console import Painted, echo, joined, paint

_HEADING = re.compile(r"[ \t]*#{1,6} ")
_SPECIAL = re.compile(r"(\*\*|`|\n)")
_UNITS = re.compile(r"\n|[ \t]+|[^ \t\n]+")


class WordWrap:
    """Wraps a stream of tokens at words; a word is held back until it is complete.

    Code, tables and text without blanks are not wrapped. width: columns of the
    terminal, queried for every line as it may be resized; None: no wrapping.
    """

    def __init__(self, width: Callable[[], int | None]) -> None:
        self._ask = width
        self._width = width()
        self._column = 0
        self._line = ""  # the unwrapped line so far
        self._fence = False
        self._blank: Token | None = None  # between two words, or where a line ends
        self._word: list[Token] = []  # parts of an incomplete word

    def __call__(self, tokens: Iterable[Token]) -> Iterator[Token]:
        """The same text with more line breaks, each part with its own source."""
        for token in tokens:
            for unit in _UNITS.findall(token.text):
                yield from self._unit(token._replace(text=unit))
        yield from self._release()
        yield from self._blanks()

    def _unit(self, part: Token) -> Iterator[Token]:
        if part.text == "\n":
            yield from self._release()
            yield from self._blanks()
            yield part
            self._fence ^= self._line.lstrip().startswith("```")
            self._column, self._line, self._width = 0, "", self._ask()
            return
        self._line += part.text
        if part.text.isspace():
            yield from self._release()
            if self._blank:
                part = part._replace(text=self._blank.text + part.text)
            self._blank = part
        elif self._stays():
            yield from self._release()
            yield from self._blanks()
            self._column += _columns(part.text)
            yield part
        else:
            self._word.append(part)

    def _stays(self) -> bool:
        """Whether the line must not be wrapped."""
        begun = self._line.lstrip()
        return self._width is None or self._fence or begun.startswith(("```", "|"))

    def _release(self) -> Iterator[Token]:
        """The word held back, on the next line if it does not fit on this one."""
        if not self._word:
            return
        size = sum(_columns(part.text) for part in self._word)
        blank = _columns(self._blank.text) if self._blank else 0
        full = self._width is not None and self._column + blank + size > self._width
        if full and self._column and self._blank:
            yield self._blank._replace(text="\n")
            self._blank, self._column, self._width = None, 0, self._ask()
        yield from self._blanks()
        yield from self._word
        self._column += size
        self._word.clear()

    def _blanks(self) -> Iterator[Token]:
        if self._blank:
            yield self._blank
            self._column += _columns(self._blank.text)
            self._blank = None


def _columns(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return max(0, wcswidth(text.expandtabs())) or len(text)


class Markdown:
    """Styles Markdown while it streams; a chunk may end anywhere.

    Headings and `**text**` become bold, code is coloured; the marks are kept.
    """

    def __init__(self) -> None:
        self._line = ""  # the line so far
        self._waiting = ""  # a star that may be the first of two
        self._fence = self._code = self._bold = False

    def feed(self, text: str) -> Painted:
        """The text with escape codes; the style is reset after every chunk."""
        text, self._waiting = self._waiting + text, ""
        if text.endswith("*") and not text.endswith("**"):
            text, self._waiting = text[:-1], "*"
        return joined(self._part(part) for part in _SPECIAL.split(text) if part)

    def flush(self) -> Painted:
        """The text still held back, at the end."""
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
            return paint(part, bold=True)
        self._code = not self._code
        return paint(part, fg="cyan")

    def _newline(self) -> str:
        if self._line.lstrip().startswith("```"):
            self._fence = not self._fence
        self._line, self._code, self._bold = "", False, False
        return "\n"

    def _styled(self, text: str) -> Painted:
        line = self._line + text
        if self._fence or self._code or line.lstrip().startswith("```"):
            return paint(text, fg="cyan")
        if self._bold:
            return paint(text, bold=True)
        heading = _HEADING.match(line)
        if heading is None:
            return joined([text])
        marks = max(0, heading.end() - len(self._line))  # they may be in this chunk
        return joined([text[:marks], paint(text[marks:], bold=True)])


def shown(
    tokens: Iterable[Token],
    wrap: WordWrap,
    *,
    looks: bool,
    folds: bool,
    form: AnswerForm,
    thinks: bool = False,
) -> Iterator[str]:
    """The text to print for an answer, piece by piece.

    looks: style Markdown. folds: hide thoughts, and print their length to stderr; else
    they are between <think> tags. form: of the tokens. thinks: the answer begins inside
    thoughts.
    """
    if folds:
        tokens = _folded(tokens, form.thoughts(open=thinks))
    else:
        tokens = form.think_tags(open=thinks).over(tokens)
    markdown = Markdown() if looks else None
    for token in wrap(tokens):
        yield markdown.feed(token.text) if markdown else token.text
    if markdown:
        yield markdown.flush()


def _folded(tokens: Iterable[Token], thoughts: Separator) -> Iterator[Token]:
    """Tokens without the text of thoughts."""
    thinking, characters, last = False, 0, None
    for token in tokens:
        thought, answer = thoughts.feed(token.text)
        characters += len(thought)
        last = token._replace(text=answer)
        if thoughts.open and not thinking:
            thinking, characters = True, len(thought)
            _aside("thinking ...")
        elif thinking and not thoughts.open:
            thinking = False
            _aside(f" {characters} characters, folded\n")
        yield last
    if thinking:
        _aside(" not finished\n")
    if last:
        yield last._replace(text=thoughts.flush().answer)


def _aside(text: str) -> None:
    echo(paint(text, dim=True), err=True, nl=False)
