"""The picture of cost curves in the documentation, from results of `edgecs bench`.

The SVG is written without a plotting library, because a check compares every byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from edgecs_bench.run.result import read

_COLOURS = ("#1565c0", "#b26a00", "#2e7d32", "#8e24aa")  # visible on white and on black
_WIDEST, _HIGHEST = 16, 8  # tokens in a call; times relative to one token
_LEFT, _TOP, _WIDE, _HIGH = 50, 20, 400, 240  # the plot, in pixels
_TEXT = 'fill="#777"'


class Curve(NamedTuple):
    """Relative cost of calls: seconds of a call of n tokens over those of one."""

    name: str
    times: Mapping[int, float]


def cost_curves(files: Mapping[str, Path]) -> str:
    """An SVG with the curve of each file under its name. Raises what `read` raises."""
    curves = []
    for name, file in files.items():
        (result,) = read(file)
        costs = {int(n): ms for n, ms in result["costs"]["ms"].items()}
        seen = {n: ms / costs[1] for n, ms in costs.items() if n <= _WIDEST}
        curves.append(Curve(name, seen))
    return draw(curves)


def draw(curves: Sequence[Curve]) -> str:
    """An SVG of up to four curves, each labelled at its end."""
    width, height = _LEFT + _WIDE + 190, _TOP + _HIGH + 50
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="14">',
        "<title>What a call of several tokens costs, in calls of one token</title>",
    ]
    for y in range(0, _HIGHEST + 1, 2):
        label = _label(_LEFT - 10, _y(y) + 5, f"{y} x", "end")
        lines.append(
            f'<path d="M{_at(1, y)} L{_at(_WIDEST, y)}" stroke="#888" '
            f'stroke-opacity="0.3"/>{label}'
        )
    lines += [_label(_x(n), _TOP + _HIGH + 20, str(n), "middle") for n in (1, 4, 8, 16)]
    middle = (_x(1) + _x(_WIDEST)) / 2
    lines += [
        _label(middle, _TOP + _HIGH + 42, "tokens in a call", "middle"),
        f'<path d="M{_at(1, 1)} L{_at(_HIGHEST, _HIGHEST)}" stroke="#888" '
        'stroke-dasharray="5 4"/>',
        _label(_x(_HIGHEST) + 8, _TOP + 12, "as many calls of one token", "start"),
    ]
    for curve, colour in zip(curves, _COLOURS, strict=False):
        points = [_at(n, times) for n, times in sorted(curve.times.items())]
        end = _y(curve.times[max(curve.times)]) + 5
        lines.append(
            f'<path d="M{" L".join(points)}" fill="none" stroke="{colour}" '
            f'stroke-width="2.5"/><text x="{_x(_WIDEST) + 8:.1f}" y="{end:.1f}" '
            f'fill="{colour}">{curve.name}</text>'
        )
    return "\n".join([*lines, "</svg>"])


def _x(tokens: float) -> float:
    return _LEFT + _WIDE * (tokens - 1) / (_WIDEST - 1)


def _y(times: float) -> float:
    return _TOP + _HIGH * (1 - times / _HIGHEST)


def _at(tokens: float, times: float) -> str:
    return f"{_x(tokens):.1f} {_y(times):.1f}"


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {_TEXT}>{text}</text>'
