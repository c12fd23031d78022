"""What reaches a terminal: harmless text, edgecs's own looks, lines broken at words."""

from __future__ import annotations

import ast
import io
import itertools
import re
import sys
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.session.answer import Token
from edgecs.toolcalls.form import AnswerForm
from edgecs_cli import console
from edgecs_cli.chat.render import WordWrap, shown
from edgecs_cli.console import (
    Painted,
    Status,
    echo,
    harmless,
    has_colours,
    joined,
    paint,
    say,
    wrapped,
)
from tests.conftest import Screen

CLI = Path(console.__file__).parent
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
hostile = st.text(
    st.one_of(
        st.sampled_from("\x1b\x07\r\x9b\x08\x7f\n\t[]m;c52"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=30,
)


class Writes:
    """stdout and stderr as terminals or as pipes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> None:
        kind = Screen if terminal else io.StringIO
        self.out, self.err = kind(), kind()
        monkeypatch.setattr(sys, "stdout", self.out)
        monkeypatch.setattr(sys, "stderr", self.err)


def test_only_the_console_writes():
    """Everything else goes through it, so nothing reaches a terminal as it is."""
    writers = {"echo", "secho", "style", "echo_via_pager", "clear"}
    for path in CLI.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or path.stem == "console":
                continue
            name = ast.unparse(node.func)
            assert name != "print", path
            assert not re.fullmatch(r"sys\.std(out|err)\.write", name), path
            assert name not in {f"click.{writer}" for writer in writers}, (path, name)


@given(hostile)
def test_harmless_text_has_nothing_to_obey(text: str):
    assert not OBEYED.search(harmless(text))
    assert not re.search(r"[\u2028-\u202e\u2066-\u2069]", harmless(text))
    assert len(harmless(text)) == len(text)
    assert harmless(harmless(text)) == harmless(text)


@given(st.lists(st.tuples(hostile, st.booleans()), max_size=4))
def test_looks_are_the_only_codes(parts: list[tuple[str, bool]]):
    whole = joined(paint(text, bold=True) if looks else text for text, looks in parts)
    assert isinstance(whole, Painted)
    assert not OBEYED.search(re.sub(r"\x1b\[[01]m", "", whole))
    shown = click.unstyle(whole)
    assert shown == harmless("".join(text for text, _ in parts))
    assert not isinstance(whole + "x", Painted)  # nothing stays painted by accident


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_terminal_obeys_stays_in_pipes(monkeypatch, terminal: bool):
    writes = Writes(monkeypatch, terminal=terminal)
    evil = "a\x1b]52;c;x\x07\r\tb\x9b31m"
    echo(evil)
    echo(evil, err=True)
    say(evil)
    safe = "a␛]52;c;x␇␍\tb\ufffd31m"
    assert writes.out.getvalue() == (safe if terminal else evil) + "\n"
    assert [click.unstyle(line) for line in writes.err.getvalue().splitlines()] == (
        [safe, safe]
    )


def test_looks_are_for_streams_that_have_colours(monkeypatch):
    for variable in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    painted = joined(["a", paint("b", fg="cyan")])
    for terminal in (True, False):
        writes = Writes(monkeypatch, terminal=terminal)
        echo(painted)
        assert writes.out.getvalue() == (painted if terminal else "ab") + "\n"


def test_a_status_is_wiped_and_kept_from_pipes(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for terminal in (True, False):
        writes = Writes(monkeypatch, terminal=terminal)
        status = Status()
        status.show("one\x1b[2J and more")
        status.show("two")
        status.wipe()
        status.wipe()
        if not terminal:
            assert writes.err.getvalue() == ""
            continue
        frames = writes.err.getvalue().split("\r")
        assert [frame.strip() for frame in frames] == (
            ["", "one␛[2J and more", "two", "", ""]
        )


@pytest.mark.parametrize(
    ("variables", "terminal", "pipe"),
    [
        ({}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, True, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
    ],
)
def test_where_there_are_colours(monkeypatch, variables, terminal: bool, pipe: bool):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert has_colours(Screen()) is terminal
    assert has_colours(io.StringIO()) is pipe
    for said in (True, False):  # a program around the command decides for it
        with click.Context(click.Command("x")) as context:
            context.color = said
            assert has_colours(Screen()) is has_colours(io.StringIO()) is said


# Lines.


@given(st.text(st.sampled_from("ab \n"), max_size=120), st.integers(20, 40))
def test_lines_on_the_side_are_broken_at_words(text: str, width: int):
    lines = wrapped(text, width).split("\n")
    assert all(len(line) <= width for line in lines if " " in line)
    assert "".join(lines).replace(" ", "") == re.sub(r"\s", "", text)
    assert wrapped(text, None) == text


words = st.text(st.sampled_from("ab\n ` |日é"), max_size=200)


def streamed(text: str, width: int | None, cuts: list[int]) -> list[Token]:
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [text[a:b] for a, b in itertools.pairwise(ends)]
    tokens = [Token(i, piece, f"s{i % 3}") for i, piece in enumerate(pieces)]
    return list(WordWrap(lambda: width)(tokens))


@given(words, st.integers(20, 40), st.lists(st.integers(0, 200), max_size=30))
def test_an_answer_is_broken_at_words_however_it_comes(
    text: str, width: int, cuts: list[int]
):
    whole = "".join(token.text for token in streamed(text, width, []))
    parts = streamed(text, width, cuts)
    assert "".join(token.text for token in parts) == whole
    # Only blanks between words became line ends.
    assert re.sub(r"\s", "", whole) == re.sub(r"\s", "", text)
    for line in whole.split("\n"):
        wide = sum(2 if letter == "日" else 1 for letter in line)
        kept = line.lstrip().startswith(("|", "```")) or "```" in text
        assert wide <= width or kept or " " not in line.strip()


@given(words, st.lists(st.integers(0, 200), max_size=30))
def test_without_a_width_nothing_changes(text: str, cuts: list[int]):
    assert "".join(token.text for token in streamed(text, None, cuts)) == text


@given(words, st.lists(st.integers(0, 200), max_size=30))
def test_every_part_keeps_its_writer(text: str, cuts: list[int]):
    written = [
        (letter, token.source)
        for token in streamed(text, None, cuts)
        for letter in token.text
        if not letter.isspace()
    ]
    broken = [
        (letter, token.source)
        for token in streamed(text, 20, cuts)
        for letter in token.text
        if not letter.isspace()
    ]
    assert broken == written


def test_code_and_tables_are_not_broken():
    line = "some words that are longer than the line they are in"
    text = f"```\n{line}\n```\n| {line} |\n{line}\n"
    got = "".join(token.text for token in streamed(text, 20, []))
    assert got.startswith(f"```\n{line}\n```\n| {line} |\nsome words that are\n")


def test_an_answer_with_looks_is_harmless():
    evil = Token(0, "**a\x1b]0;x\x07**\r `b\x9b` # c\n", "target")
    for looks in (True, False):
        wrap = WordWrap(lambda: 40)
        form = AnswerForm.of("")
        pieces = [*shown([evil], wrap, looks=looks, folds=True, form=form)]
        safe = "".join(map(str, (joined([piece]) for piece in pieces)))
        bare = click.unstyle(safe)
        assert not OBEYED.search(bare.replace("\n", ""))
