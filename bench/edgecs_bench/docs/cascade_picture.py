"""The picture of speculative cascades in the documentation.

The SVG is written without a plotting library, because a check compares every byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor
from pathlib import Path
from typing import Any, NamedTuple

from edgecs_bench.cascades.dominance import points, quality
from edgecs_bench.cascades.ways import LARGE, SMALL, SPECULATIVE
from edgecs_bench.docs.cascade_tables import QUALITIES, by_temperature, read

_COLOURS = {  # visible on white and on black
    "chow": "#1565c0",
    "diff": "#00838f",
    "opt": "#b26a00",
    "v1": "#8e24aa",
    "v2": "#c2185b",
    "v3": "#2e7d32",
    "lenient": "#a1887f",
}
_WIDE, _HIGH = 240, 180  # a panel, in pixels
_LEFT, _TOP, _GAP, _BELOW = 52, 66, 104, 84
_GREY = "#777"
_ROUNDING = 1e-6  # of steps


class Panel(NamedTuple):
    """One plot: the rows of a temperature, and their quality (`dominance.quality`)."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    quality: str


def cascades(files: Mapping[str, Path]) -> str:
    """An SVG of some results, by the name of their prompts.

    A line of panels for each result and quality, a panel for each temperature.
    """
    lines = []
    for name, file in files.items():
        groups = by_temperature(read(file))
        for kind, shown in QUALITIES.items():
            panels = []
            for temperature, rows in groups.items():
                title = (
                    f"{name}, T {temperature:g}, {rows[0]['answers']} prompts: {shown}"
                )
                if any(quality(row, kind) is not None for row in rows):
                    panels.append(Panel(title, rows, kind))
            if panels:
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


class _Scale(NamedTuple):
    """The part of the plane that a panel shows; more calls are on the left."""

    left: float
    top: float
    calls: tuple[float, float]
    quality: tuple[float, float]

    def x(self, calls: float) -> float:
        least, most = self.calls
        return self.left + _WIDE * (most - calls) / (most - least)

    def y(self, good: float) -> float:
        least, most = self.quality
        return self.top + _HIGH * (most - good) / (most - least)


def _panel(panel: Panel, left: float, top: float) -> list[str]:
    """The rules as lines; the models alone, which draft nothing, as levels."""
    names = [*_COLOURS, SPECULATIVE]
    found = {name: points(panel.rows, name, panel.quality) for name in names}
    levels = {
        row["way"]: good
        for row in panel.rows
        if row["way"] in (LARGE, SMALL)
        and (good := quality(row, panel.quality)) is not None
    }
    shown = [point for line in found.values() for point in line]
    scale = _Scale(
        left,
        top,
        _range([calls for calls, _ in shown], 0.02),
        _range([*levels.values(), *(good for _, good in shown)], 0.05),
    )
    parts = [_label(left, top - 24, panel.title, "start"), *_axes(scale)]
    named: dict[float, list[str]] = {}
    for name, good in levels.items():
        named.setdefault(round(good, 2), []).append(name)
    for alike in named.values():
        y, name = scale.y(levels[alike[0]]), ", ".join(alike)
        parts.append(
            f'<path d="M{left:.1f} {y:.1f} l{_WIDE} 0" stroke="{_GREY}" '
            'stroke-dasharray="5 4"/>' + _label(left + _WIDE + 4, y + 4, name, "start")
        )
    for name in _COLOURS:
        parts += _line([(scale.x(c), scale.y(g)) for c, g in found[name]], name)
    for calls, good in found[SPECULATIVE]:
        x, y = scale.x(calls), scale.y(good)
        parts.append(
            f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6" '
            f'fill="{_GREY}"/>' + _label(x, y - 6, SPECULATIVE, "start")
        )
    return parts


def _range(values: Sequence[float], step: float) -> tuple[float, float]:
    """Multiples of a step around some values."""
    most = ceil(max(values, default=1) / step - _ROUNDING) * step
    least = floor(min(values, default=0) / step + _ROUNDING) * step
    return min(least, most - step), most


def _axes(scale: _Scale) -> list[str]:
    left, top, calls, goods = scale
    parts = []
    for good in (goods[0], sum(goods) / 2, goods[1]):
        y = scale.y(good)
        parts.append(
            f'<path d="M{left:.1f} {y:.1f} l{_WIDE} 0" stroke="#888" '
            f'stroke-opacity="0.3"/>' + _label(left - 6, y + 4, f"{good:.3f}", "end")
        )
    for at in (calls[0], sum(calls) / 2, calls[1]):
        parts.append(_label(scale.x(at), top + _HIGH + 16, f"{at:.2f}", "middle"))
    text = "calls of the large model for each token"
    return [*parts, _label(left + _WIDE / 2, top + _HIGH + 34, text, "middle")]


def _line(at: Sequence[tuple[float, float]], name: str) -> list[str]:
    """A line with dots."""
    if not at:
        return []
    dots = "".join(f"M{x:.1f} {y:.1f} l0 0" for x, y in at)
    path = " L".join(f"{x:.1f} {y:.1f}" for x, y in at)
    style = f'fill="none" stroke="{_COLOURS[name]}"'
    return [
        f'<path d="M{path}" {style} stroke-width="1.5"/>',
        f'<path d="{dots}" {style} stroke-width="6" stroke-linecap="round"/>',
    ]


def _label(x: float, y: float, text: str, anchor: str, colour: str = _GREY) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
        f'fill="{colour}">{text}</text>'
    )
