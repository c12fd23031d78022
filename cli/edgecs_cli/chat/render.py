"""How an answer looks while it comes: Markdown, thoughts, lines broken at words.

Nothing that was written is ever written again, so the stream neither flickers nor
fights with a terminal that is resized: Markdown keeps its marks and gets its looks as
it passes by, and a word waits until it is whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from wcwidth import wcswidth

from edgecs.session.answer import Token
from edgecs_cli.console import Painted, echo, joined, paint

OPENS, _CLOSES = "<think>", "</think>"
_HEADING = re.compile(r"[ \t]*#{1,6} ")
_SPECIAL = re.compile(r"(\*\*|`|\n)")
_UNITS = re.compile(r"\n|[ \t]+|[^ \t\n]+")


class WordWrap:
    """Breaks lines at words in a stream of tokens; a word waits until it is whole.

    Lines of code and of tables stay as they are, and so does what has no blanks. width:
    columns of the terminal, asked for at every line as it may be resized; None: no
    lines are broken.
    """

    def __init__(self, width: Callable[[], int | None]) -> None:
        self._ask = width
        self._width = width()
        self._column = 0
        self._line = ""  # what the source has of the line so far
        self._fence = False
        self._blank: Token | None = None  # between two words, or where a line ends
        self._word: list[Token] = []  # parts of a word that may go on

    def __call__(self, tokens: Iterable[Token]) -> Iterator[Token]:
        """The same text with other line ends, each part with its own source."""
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
        """Whether the line is none that may be broken."""
        begun = self._line.lstrip()
        return self._width is None or self._fence or begun.startswith(("```", "|"))

    def _release(self) -> Iterator[Token]:
        """The word that waited, on the next line where this one has no room for it."""
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
    """Columns that a text takes on a terminal, as far as that is known."""
    return max(0, wcswidth(text.expandtabs())) or len(text)


class Markdown:
    """Gives Markdown its looks while it streams; a chunk may end anywhere.

    Headings and `**text**` become bold, code coloured; the marks stay.
    """

    def __init__(self) -> None:
        self._line = ""  # the line so far
        self._waiting = ""  # a star that may be the first of two
        self._fence = self._code = self._bold = False

    def feed(self, text: str) -> Painted:
        """The text with escape codes; every chunk ends with plain looks."""
        text, self._waiting = self._waiting + text, ""
        if text.endswith("*") and not text.endswith("**"):
            text, self._waiting = text[:-1], "*"
        return joined(self._part(part) for part in _SPECIAL.split(text) if part)

    def flush(self) -> Painted:
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
    tokens: Iterable[Token],
    wrap: WordWrap,
    *,
    looks: bool,
    folds: bool,
    thinks: bool = False,
) -> Iterator[str]:
    """What to write for an answer, piece by piece.

    looks: Markdown gets its looks. folds: thoughts are left out, and how much was
    thought is said on stderr. thinks: it begins within a thought.
    """
    if folds:
        tokens = _folded(tokens, Thoughts(open=thinks))
    markdown = Markdown() if looks else None
    for token in wrap(tokens):
        yield markdown.feed(token.text) if markdown else token.text
    if markdown:
        yield markdown.flush()


def _folded(tokens: Iterable[Token], thoughts: Thoughts) -> Iterator[Token]:
    """Tokens without the text of thoughts."""
    thinking, last = False, None
    for token in tokens:
        last = token._replace(text=thoughts.feed(token.text))
        if thoughts.open and not thinking:
            thinking = True
            _aside("thinking ...")
        elif thinking and not thoughts.open:
            thinking = False
            _aside(f" {thoughts.characters} characters, folded\n")
        yield last
    if thinking:
        _aside(" not finished\n")
    if last:
        yield last._replace(text=thoughts.flush())


def _aside(text: str) -> None:
    echo(paint(text, dim=True), err=True, nl=False)
