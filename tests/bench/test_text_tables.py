"""Tables as text: whatever is in their cells, a row is a line, and nothing is lost."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from edgecs_bench.report.summary import table_lines
from edgecs_bench.text_tables import aligned, markdown, with_heads

# A column of nothing but modifiers has no width, and would show nothing.
letters = st.characters(codec="utf-8").filter(lambda c: cell_len(c) or c < "\xa0")
cells = st.text(letters, max_size=8)
tables = st.integers(1, 4).flatmap(
    lambda width: st.lists(
        st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=4
    )
)


def test_words_are_flush_left_and_numbers_flush_right():
    rows = [["name", "n", "note"], ["a", 12345, "x"], ["longer", 7, "also words"]]
    assert aligned(rows, words=(0, 2)) == [
        "name        n  note",
        "a       12345  x",
        "longer      7  also words",
    ]


def test_wide_characters_take_two_columns():
    assert aligned([["日本", 1], ["abcd", 22]]) == ["日本   1", "abcd  22"]


def test_markup_and_emoji_codes_are_text():
    assert aligned([["[bold]a[/]", ":smile:"]]) == ["[bold]a[/]  :smile:"]


@pytest.mark.parametrize("columns", ["1", "20", "100000"])
def test_no_line_is_cut_or_broken_however_wide_the_terminal_is(
    columns: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    row = ["x" * 300, "a b " * 100 + "c"]
    assert aligned([row, ["", 1]], words=(0, 1))[0] == "  ".join(row)


@given(tables)
def test_a_row_is_a_line_of_its_cells(rows: list[list[str]]):
    lines = aligned(rows)
    assert len(lines) == len(rows)
    for row, line in zip(rows, lines, strict=True):
        assert words_of(line) == words_of(" ".join(row))
    shown = markdown(rows, padded=True)
    assert len(shown.split("\n")) == len(rows) + 2
    for line in (shown + markdown(rows)).rstrip("\n").split("\n"):
        assert len(re.findall(r"(?<!\\)\|", line)) == len(rows[0]) + 1


def words_of(text: str) -> list[str]:
    return re.sub("[\x00-\x1f\x7f-\x9f]", " ", text).split()


def test_padded_markdown_lines_up():
    assert markdown([["a", "b"], ["long", "x|y"]], padded=True) == (
        "| a    | b    |\n| ---- | ---- |\n| long | x\\|y |\n"
    )


def test_no_rows_are_no_table():
    assert aligned([]) == []
    assert markdown([]) == ""
    assert with_heads([]) == []


def test_records_of_equal_keys_are_rows_under_their_keys():
    assert with_heads([{"a": 1, "b": 2}]) == [["a", "b"], [1, 2]]


def test_the_columns_before_the_first_number_hold_words():
    rows = [{"chain": "a", "on": "xyz", "n": 10, "share": "5%"}]
    assert table_lines(rows) == ["chain  on    n  share", "a      xyz  10     5%"]
