"""Tables as text: columns for a terminal, Markdown for files and documents.

Both writers take rows of cells and write one line per row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

Row = Sequence[object]

# Control characters and newlines have no width, and a row must stay one line.
_BREAKS = dict.fromkeys((*range(32), *range(127, 160), 0x2028, 0x2029), " ")
_WIDEST = 1 << 20  # columns; lines are not cut, the terminal wraps longer ones


def aligned(rows: Iterable[Row], *, words: Collection[int] = (0,)) -> list[str]:
    """Rows as lines, with spaces between the columns.

    words: left-aligned columns; the others hold numbers and are right-aligned.

    >>> for line in aligned([["way", "tok/s"], ["own", 41.5], ["llama.cpp", 7.25]]):
    ...     print(line)
    way        tok/s
    own         41.5
    llama.cpp   7.25
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[Text(text) for text in _texts(row)] for row in rows]
    table = Table.grid(padding=(0, 2, 0, 0))
    for at in range(max(map(len, cells), default=0)):
        side: Literal["left", "right"] = "left" if at in words else "right"
        table.add_column(justify=side, no_wrap=True)
    for row in cells:
        table.add_row(*row)
    console = Console(width=_WIDEST, color_system=None)
    lines = console.render_lines(table, pad=False) if cells else []
    return ["".join(part.text for part in line).rstrip() for line in lines]


def markdown(rows: Iterable[Row], *, padded: bool = False) -> str:
    """A Markdown table, with the header first; an empty text for no rows.

    padded: the source lines up too.

    >>> print(markdown([["mode", "speed"], ["a|b", 1.5]]), end="")
    | mode | speed |
    | --- | --- |
    | a\\|b | 1.5 |
    """
    cells = [[text.replace("|", "\\|") for text in _texts(row)] for row in rows]
    if not cells:
        return ""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width if padded else "---" for width in widths])
    if padded:
        cells = [
            [text.ljust(width) for text, width in zip(row, widths, strict=True)]
            for row in cells
        ]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def with_heads(records: Sequence[Mapping[str, object]]) -> list[Row]:
    """Records with equal keys as rows, with the keys first; no rows for no records."""
    if not records:
        return []
    return [list(records[0]), *(list(record.values()) for record in records)]


def _texts(row: Row) -> list[str]:
    return [str(cell).translate(_BREAKS) for cell in row]
