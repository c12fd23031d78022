"""The one way to a terminal: text from anywhere goes out harmless, looks are ours.

A template's message, a name in a GGUF, a saved conversation, a path: each may hold
what a terminal obeys, up to its clipboard (OSC 52). So nothing but this module writes
to stdout and stderr, and only text that `paint` made keeps its escape codes.
"""

from __future__ import annotations

import base64
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import TextIO

import click

from edgecs_bench.text_tables import Row, aligned

# What terminals obey: all control characters but newline and tab, which are shown as
# pictures.
_CONTROL = {code: 0x2400 + code for code in range(32) if code not in (9, 10)}
_CONTROL |= {127: 0x2421} | dict.fromkeys(range(128, 160), 0xFFFD)
# What ends a line elsewhere, and what shows text in another order than it has.
_CONTROL |= dict.fromkeys((*range(0x2028, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)
_LEAST_WIDTH = 20  # columns; a narrower terminal breaks lines itself


class StreamLost(OSError):
    """Stdout or stderr takes no more: a reader went away, a disk is full."""


class Painted(str):
    """Text with escape codes of edgecs's own, as `paint` and `joined` make it.

    Whatever is done to it with methods of `str` gives a plain text, which is made
    harmless again.
    """

    __slots__ = ()


def harmless(text: str) -> str:
    """Text that cannot move the cursor, change colours or ring.

    >>> harmless("a\\x1b[31mb\\n")
    'a␛[31mb\\n'
    """
    return text.translate(_CONTROL)


def paint(
    text: str,
    *,
    fg: int | str | None = None,
    bold: bool | None = None,
    dim: bool | None = None,
    underline: bool | None = None,
) -> Painted:
    """Harmless text with looks; an empty text has none."""
    if not text:
        return Painted()
    return Painted(
        click.style(harmless(text), fg=fg, bold=bold, dim=dim, underline=underline)
    )


def joined(parts: Iterable[str]) -> Painted:
    """Painted and other texts as one: the others are made harmless."""
    return Painted("".join(map(_safe, parts)))


def _safe(text: str) -> str:
    return text if isinstance(text, Painted) else harmless(text)


def has_colours(stream: TextIO) -> bool:
    """Whether to write colours to a stream.

    The command's own setting counts first (click's `color`), then NO_COLOR, then
    FORCE_COLOR, then whether it is a terminal that has colours.
    """
    context = click.get_current_context(silent=True)
    if context is not None and context.color is not None:
        return context.color
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return moves(stream)


def moves(stream: TextIO) -> bool:
    """Whether a stream is a terminal on which a line can be written again."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Writes to stdout, or to stderr.

    Only a pipe or a file behind stdout gets every character as it is.
    """
    stream = sys.stderr if err else sys.stdout
    if isinstance(text, Painted):
        if not has_colours(stream):
            text = click.unstyle(text)
    elif err or stream.isatty():
        text = harmless(text)
    try:  # what click would decide about colours is decided above
        click.echo(text, err=err, nl=nl, color=True)
    except OSError as error:
        raise StreamLost(error.errno, error.strerror) from error


def echo_table(rows: Iterable[Row], *, words: Collection[int] = (0,)) -> None:
    """Writes rows to stdout as columns that can be copied, see `aligned`."""
    for line in aligned(rows, words=words):
        echo(line)


def say(text: str, *, quiet: bool = False) -> None:
    """Lines on stderr, dim where there are colours, broken at words."""
    if not quiet:
        text = wrapped(text, columns(sys.stderr))
        echo(paint(text, dim=True) if has_colours(sys.stderr) else text, err=True)


def complain(who: str, problem: object) -> None:
    """What went wrong, on stderr. who: the command, if one has to be named."""
    text = f"{who}: {problem}" if who else str(problem)
    echo(wrapped(text, columns(sys.stderr)), err=True)


def abandon(stream: TextIO) -> None:
    """Sends what is still to be written nowhere.

    Where a stream takes no more, Python would try again at its end, and fail.
    """
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def columns(stream: TextIO) -> int | None:
    """Columns of the terminal that a stream writes to; None: it is none."""
    if not stream.isatty():
        return None
    try:
        width = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # no descriptor, or one without a size
        width = shutil.get_terminal_size().columns
    return width if width >= _LEAST_WIDTH else None


def wrapped(text: str, width: int | None, indent: str = "") -> str:
    """Text with lines of `width` characters at most, broken at words.

    indent: before what continues a line. None: as it is.
    """
    if width is None:
        return text
    fill = textwrap.TextWrapper(
        width,
        subsequent_indent=indent,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(
        fill.fill(line) if len(line) > width else line for line in text.split("\n")
    )


def to_clipboard(text: str) -> None:
    """Hands a text to the terminal's clipboard (OSC 52), also at the end of an ssh."""
    data = base64.b64encode(text.encode("utf-8", "replace")).decode()
    sys.stderr.write(f"\033]52;c;{data}\a")
    sys.stderr.flush()


class Status:
    """A line on stderr that is written again and again, and wiped at the end.

    Shown only on a terminal that can move its cursor.
    """

    def __init__(self) -> None:
        self._size = 0

    def show(self, text: str) -> None:
        """Writes over what stands there."""
        if not moves(sys.stderr):
            return
        width = columns(sys.stderr) or 80
        text = harmless(text)[: width - 1]
        sys.stderr.write(f"\r{text}{' ' * (self._size - len(text))}")
        sys.stderr.flush()
        self._size = len(text)

    def wipe(self) -> None:
        """Leaves an empty line."""
        if self._size:
            sys.stderr.write(f"\r{' ' * self._size}\r")
            sys.stderr.flush()
            self._size = 0


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))


def show_log(verbose: bool) -> None:
    """Shows what the library and llama.cpp log on stderr, if asked for.

    As long as the command runs that is under way.
    """
    if not verbose:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(message)s"))
    logger = logging.getLogger("edgecs")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    if context := click.get_current_context(silent=True):
        context.call_on_close(lambda: logger.removeHandler(handler))
