"""Terminal output: untrusted text is escaped, and styled only by this module.

A template's message, a name in a GGUF, a saved conversation or a path may contain
terminal escape sequences, even for the clipboard (OSC 52). So only this module writes
to stdout and stderr, and only text made by `paint` keeps its escape codes.
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

# Control characters other than newline and tab are shown as control pictures.
_CONTROL = {code: 0x2400 + code for code in range(32) if code not in (9, 10)}
_CONTROL |= {127: 0x2421} | dict.fromkeys(range(128, 160), 0xFFFD)
# Unicode line separators, and controls that reorder text.
_CONTROL |= dict.fromkeys((*range(0x2028, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)
_LEAST_WIDTH = 20  # columns; a narrower terminal wraps lines itself


class StreamLost(OSError):
    """Writing to stdout or stderr failed: a closed pipe, a full disk."""


class Painted(str):
    """Text with escape codes, made by `paint` and `joined`.

    Methods of `str` return plain text, which is escaped again.
    """

    __slots__ = ()


def harmless(text: str) -> str:
    """Escapes text so that it cannot move the cursor, change colours or ring.

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
    """Escaped text with a style; empty text stays empty."""
    if not text:
        return Painted()
    return Painted(
        click.style(harmless(text), fg=fg, bold=bold, dim=dim, underline=underline)
    )


def joined(parts: Iterable[str]) -> Painted:
    """Joins texts, and escapes those that are not painted."""
    return Painted("".join(map(_safe, parts)))


def _safe(text: str) -> str:
    return text if isinstance(text, Painted) else harmless(text)


def has_colours(stream: TextIO) -> bool:
    """Whether to write colours to a stream.

    In order of precedence: the command's own setting (click's `color`), NO_COLOR,
    FORCE_COLOR, and whether the stream is a terminal with colours.
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
    """Whether a stream is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Writes to stdout, or to stderr.

    Text is written unescaped only if stdout is a pipe or a file.
    """
    stream = sys.stderr if err else sys.stdout
    if isinstance(text, Painted):
        if not has_colours(stream):
            text = click.unstyle(text)
    elif err or stream.isatty():
        text = harmless(text)
    try:  # colours are decided above, not by click
        click.echo(text, err=err, nl=nl, color=True)
    except OSError as error:
        raise StreamLost(error.errno, error.strerror) from error


def echo_table(rows: Iterable[Row], *, words: Collection[int] = (0,)) -> None:
    """Writes rows to stdout as columns, see `aligned`."""
    for line in aligned(rows, words=words):
        echo(line)


def say(text: str, *, quiet: bool = False) -> None:
    """Writes wrapped lines to stderr, dim if it has colours."""
    if not quiet:
        text = wrapped(text, columns(sys.stderr))
        echo(paint(text, dim=True) if has_colours(sys.stderr) else text, err=True)


def complain(who: str, problem: object) -> None:
    """Writes an error to stderr. who: the command, if it has to be named."""
    text = f"{who}: {problem}" if who else str(problem)
    echo(wrapped(text, columns(sys.stderr)), err=True)


def abandon(stream: TextIO) -> None:
    """Discards what a stream has not written yet.

    After a failed write Python would flush the stream again at exit, and fail.
    """
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def columns(stream: TextIO) -> int | None:
    """Columns of a stream's terminal; None: not a terminal, or too narrow."""
    if not stream.isatty():
        return None
    try:
        width = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # no descriptor, or one without a size
        width = shutil.get_terminal_size().columns
    return width if width >= _LEAST_WIDTH else None


def wrapped(text: str, width: int | None, indent: str = "") -> str:
    """Text wrapped at words to `width` characters; None: unchanged.

    indent: prefix of continuation lines.
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
    """Copies a text to the terminal's clipboard (OSC 52), also over ssh."""
    data = base64.b64encode(text.encode("utf-8", "replace")).decode()
    sys.stderr.write(f"\033]52;c;{data}\a")
    sys.stderr.flush()


class Status:
    """A status line on stderr that is overwritten in place, and erased at the end.

    It is shown only on a terminal that can move its cursor.
    """

    def __init__(self) -> None:
        self._size = 0

    def show(self, text: str) -> None:
        """Overwrites the line."""
        if not moves(sys.stderr):
            return
        width = columns(sys.stderr) or 80
        text = harmless(text)[: width - 1]
        sys.stderr.write(f"\r{text}{' ' * (self._size - len(text))}")
        sys.stderr.flush()
        self._size = len(text)

    def wipe(self) -> None:
        """Erases the line."""
        if self._size:
            sys.stderr.write(f"\r{' ' * self._size}\r")
            sys.stderr.flush()
            self._size = 0


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))


def show_log(verbose: bool, *, warnings: bool = False) -> None:
    """Writes the log of the library and of llama.cpp to stderr, if verbose.

    Otherwise only warnings about downloads, without which waiting is not explained, or
    all warnings, for a command that has no other way to tell of them. This ends with
    the current command.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(message)s"))
    handler.setLevel(logging.INFO if verbose else logging.WARNING)
    logger = logging.getLogger("edgecs" if verbose or warnings else "edgecs.hub")
    logger.addHandler(handler)
    if verbose:
        logger.setLevel(logging.INFO)
    if context := click.get_current_context(silent=True):
        context.call_on_close(lambda: logger.removeHandler(handler))
