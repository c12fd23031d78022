"""The picture of speculative cascades in the documentation.

The SVG is written without a plotting library, because a check compares every byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgecs_bench.cascades.dominance import Point, points, quality
from edgecs_bench.cascades.ways import LARGE, SMALL, SPECULATIVE
from edgecs_bench.docs.cascade_tables import by_temperature, read

_COLOURS = {  # visible on white and on black
    "chow": "#1565c0",
    "diff": "#00838f",
    "opt": "#b26a00",
    "v1": "#8e24aa",
    "v2": "#c2185b",
    "v3": "#2e7d32",
    "lenient": "#6d6d6d",
    "deferral": "#a1887f",
}
_SINGLE = {LARGE: "large", SMALL: "small", SPECULATIVE: "speculative"}
_WIDE, _HIGH = 240, 180  # a panel, in pixels
_LEFT, _TOP, _GAP, _BELOW = 52, 56, 64, 74
_GREY = "#777"


class Panel(NamedTuple):
    """One plot: the rows of a temperature, and their quality (`dominance.quality`)."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    quality: str


def cascades(files: Mapping[str, Path]) -> str:
    """An SVG of some results, by the name of their prompts.

    A line of panels for each result, a panel for each temperature. The quality is
    pass@1 where code was run.
    """
    lines = []
    for name, file in files.items():
        panels = []
        for temperature, rows in by_temperature(read(file)).items():
            tested = any(row["problems"] for row in rows)
            count = rows[0]["answers"]
            shown = "pass@1" if tested else "agreement"
            title = f"{name}, T {temperature:g}, {count} prompts: {shown}"
            panels.append(Panel(title, rows, "passed" if tested else "agreement"))
        lines.append(panels)
    return draw(lines)


def draw(lines: Sequence[Sequence[Panel]]) -> str:
    """An SVG of panels in lines."""
    columns = max(map(len, lines), default=0)
    width = _LEFT + max(2, columns) * (_WIDE + _GAP)
    height = _TOP + len(lines) * (_HIGH + _BELOW)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="12">',
        "<title>Quality against calls of the large model</title>",
    ]
    for at, (name, colour) in enumerate(_COLOURS.items()):
        x = _LEFT + at * 70
        parts.append(
            f'<path d="M{x} 14 l16 0" stroke="{colour}" stroke-width="2.5"/>'
            + _label(x + 20, 18, name, "start", colour)
        )
    for row, panels in enumerate(lines):
        for column, panel in enumerate(panels):
            left = _LEFT + column * (_WIDE + _GAP)
            parts += _panel(panel, left, _TOP + row * (_HIGH + _BELOW))
    return "\n".join([*parts, "</svg>"])


def _panel(panel: Panel, left: float, top: float) -> list[str]:
    found = {name: points(panel.rows, name, panel.quality) for name in _COLOURS}
    single = {
        row["way"]: (row["calls"], good)
        for row in panel.rows
        if row["way"] in _SINGLE and (good := quality(row, panel.quality)) is not None
    }
    every = [good for line in found.values() for _, good in line]
    every += [good for _, good in single.values()]
    least = int(10 * min(every, default=0)) / 10
    most = max(least + 0.1, -int(-10 * max(every, default=1)) / 10)

    def place(point: Point) -> tuple[float, float]:
        """Fewer calls are on the right."""
        calls, good = point
        high = (good - least) / (most - least)
        return left + _WIDE * (1 - calls), top + _HIGH * (1 - high)

    parts = [_label(left, top - 10, panel.title, "start")]
    for good in (least, (least + most) / 2, most):
        _, y = place((0, good))
        parts.append(
            f'<path d="M{left:.1f} {y:.1f} l{_WIDE} 0" stroke="#888" '
            f'stroke-opacity="0.3"/>' + _label(left - 6, y + 4, f"{good:.2f}", "end")
        )
    for calls in (1, 0.75, 0.5, 0.25, 0):
        x, _ = place((calls, least))
        parts.append(_label(x, top + _HIGH + 16, f"{calls:g}", "middle"))
    middle = left + _WIDE / 2
    text = "calls of the large model for each token"
    parts.append(_label(middle, top + _HIGH + 34, text, "middle"))
    for name, line in found.items():
        at = [place(point) for point in line]
        dots = "".join(f"M{x:.1f} {y:.1f} l0 0" for x, y in at)
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        if at:
            style = f'fill="none" stroke="{_COLOURS[name]}"'
            parts.append(f'<path d="M{path}" {style} stroke-width="1.5"/>')
            parts.append(
                f'<path d="{dots}" {style} stroke-width="6" stroke-linecap="round"/>'
            )
    for way, point in single.items():
        x, y = place(point)
        parts.append(
            f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6" '
            f'fill="{_GREY}"/>' + _label(x, y - 7, _SINGLE[way], "middle")
        )
    return parts


def _label(x: float, y: float, text: str, anchor: str, colour: str = _GREY) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
        f'fill="{colour}">{text}</text>'
    )
