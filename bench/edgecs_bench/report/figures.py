"""The figures of a report, drawn from plain numbers with `canvas`.

This module knows nothing about results. Every colour is one of `canvas.LIGHT`, so that
a page can replace it; a width of 400 points suits a card on a page and a phone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from edgecs.tuning.cost_sweep import tiles
from edgecs_bench.report.canvas import LIGHT, open_figure

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = tuple(name for name in LIGHT if name[0] == "s")

_INK, _DIM, _LINE, _PAPER = (LIGHT[name] for name in ("ink", "dim", "line", "paper"))
_MARKERS = "os^DvPX*"  # series differ not only in colour
_WIDTH = 400  # points
_LONGEST = 20  # letters of a name that fit
_LINE_OF_LETTERS = 62


class Bar(NamedTuple):
    """A value of one series, with its label."""

    series: int
    value: float
    interval: Sequence[float] | None
    note: str


class Line(NamedTuple):
    """A curve of one series."""

    series: int
    label: str
    points: Mapping[int, float]


class Pace(NamedTuple):
    """The speed along one answer."""

    series: int
    label: str
    speeds: Mapping[int, float]  # tokens per second by the tokens so far
    parked: Sequence[tuple[int, int]]  # [from token, to token]
    plain: float | None  # speed of plain decoding for such prompts


def costs(relative: Mapping[int, float], same: Sequence[int]) -> Figure:
    """Relative time of a call by width; above the dotted line drafts cannot pay."""
    figure, axes = _panel(250)
    widths = list(relative)
    top = 1.08 * max(relative.values())
    axes.plot((0, top), (0, top), ":", color=_DIM, label="n tokens, n times the cost")
    axes.plot(widths, list(relative.values()), color=_INK, zorder=2)
    looks: dict[str, tuple[list[int], dict[str, Any]]] = {
        "same bits as width 1": ([n for n in widths if n in same], {"color": _INK}),
        "other bits": (
            [n for n in widths if n not in same],
            {"color": _PAPER, "markeredgecolor": _INK},
        ),
        "end of a tile": (
            sorted(set(tiles(relative).values())),
            {
                "marker": "s",
                "markersize": 11,
                "fillstyle": "none",
                "color": LIGHT["s1"],
            },
        ),
    }
    for label, (chosen, look) in looks.items():
        if chosen:
            values = [relative[n] for n in chosen]
            look = {"marker": "o", "markersize": 5, "linestyle": "", **look}
            axes.plot(chosen, values, label=label, zorder=3, **look)
    axes.set(xlim=(0, max(widths) * 1.04), ylim=(0, top))
    axes.set(xlabel="tokens in a call (width)", ylabel="time, one token = 1")
    _legend(figure, *axes.get_legend_handles_labels())
    return figure


def bars(
    groups: Mapping[str, Sequence[Bar]],
    names: Mapping[int, str],
    *,
    start: float,
    stop: float | None = None,
    label: str,
) -> Figure:
    """Groups of bars that start at `start`, with the first group on top."""
    count = sum(map(len, groups.values()))
    figure, axes = _panel(70 + 13 * count + 9 * len(groups))
    ticks, at = [], 0.0
    for group in groups.values():
        ticks.append(at + (len(group) - 1) / 2)
        for bar in group:
            _draw_bar(axes, at, bar, start)
            at += 1
        at += 0.7
    axes.axvline(start, color=_INK, linewidth=1)
    axes.set_yticks(ticks, [_in_lines(name) for name in groups])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set(ylim=(at - 1.1, -0.7), xlabel=label)
    axes.set_xlim(right=stop)
    used = sorted({bar.series for group in groups.values() for bar in group})
    _series_legend(figure, {index: names[index] for index in used})
    return figure


def lines(curves: Sequence[Line], *, across: str, up: str) -> Figure:
    """Shares by position, one curve per series."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure, axes = _panel(230)
    for curve in curves:
        index = curve.series % len(SERIES)
        axes.plot(
            list(curve.points),
            list(curve.points.values()),
            color=LIGHT[SERIES[index]],
            marker=_MARKERS[index],
            markersize=4.5,
            label=_short(curve.label),
        )
    axes.set(xlabel=across, ylabel=up, ylim=(0, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    _legend(figure, *axes.get_legend_handles_labels())
    return figure


def paces(answers: Sequence[Pace]) -> Figure:
    """The speed along each answer, one panel per answer."""
    figure = open_figure(_WIDTH, 70 + 66 * len(answers))
    panels = figure.subplots(len(answers), 1, sharex=True, squeeze=False)[:, 0]
    found: dict[str, Artist] = {}
    for axes, answer in zip(panels, answers, strict=True):
        for begin, end in answer.parked:
            axes.axvspan(begin, end, color=_LINE, linewidth=0, label="parked")
        if answer.plain:
            axes.axhline(
                answer.plain, color=_INK, linestyle=":", label="plain decoding"
            )
        speeds = list(answer.speeds.values())
        colour = LIGHT[SERIES[answer.series % len(SERIES)]]
        axes.plot(list(answer.speeds), speeds, color=colour, label="this answer")
        axes.set_title(_short(answer.label, 40), fontsize=10.5, loc="left", pad=2)
        axes.set_ylim(0, 1.15 * max(*speeds, answer.plain or 0))
        found.update(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    panels[-1].set(xlabel="tokens of the answer")
    figure.supylabel("tokens per second", color=_DIM, fontsize=11)
    _legend(figure, list(found.values()), list(found))
    return figure


def stacks(rows: Mapping[str, Sequence[float]], parts: Sequence[str]) -> Figure:
    """Milliseconds by part, a row for each mode."""
    figure, axes = _panel(85 + 26 * len(rows))
    for at, values in enumerate(rows.values()):
        left = 0.0
        for value, fill in zip(values, (_INK, _DIM, _LINE), strict=True):
            axes.barh(at, value, 0.62, left, facecolor=fill, edgecolor=_DIM)
            left += value
        _write_beside(axes, at, f"{left:.1f} ms")
    axes.set_yticks(range(len(rows)), [_short(name) for name in rows])
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel="milliseconds per round")
    _legend(figure, axes.patches[: len(parts)], parts)
    return figure


def drift(anchors: Mapping[int, float], drifted: Sequence[int]) -> Figure:
    """The time of the same call relative to its median, before every block."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure, axes = _panel(190)
    middle = median(anchors.values())
    apart = [ms / middle - 1 for ms in anchors.values()]
    for at, block in enumerate(drifted):
        label = None if at else "block at another speed"
        axes.axvspan(block, block + 1, color=_LINE, linewidth=0, label=label)
    axes.axhline(0, color=_DIM, linestyle=":", label="median")
    axes.plot(
        list(anchors),
        apart,
        "o-",
        color=_INK,
        linewidth=0.8,
        markersize=3,
        label="one token",
    )
    far = max(0.12, 1.1 * max(map(abs, apart)))
    axes.set(ylim=(-far, far), xlabel="before block", ylabel="time, from median")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend(figure, *axes.get_legend_handles_labels())
    return figure


def _panel(height: float) -> tuple[Figure, Axes]:
    figure = open_figure(_WIDTH, height)
    return figure, figure.subplots()


def _draw_bar(axes: Axes, at: float, bar: Bar, start: float) -> None:
    axes.barh(at, bar.value - start, 0.78, start, **_look(bar.series))
    if bar.interval:
        axes.plot(bar.interval, (at, at), "|-", color=_INK, linewidth=1, markersize=5)
    _write_beside(axes, at, bar.note)


def _look(series: int) -> dict[str, Any]:
    """A fill pale enough to show a whisker on it."""
    from matplotlib.colors import to_rgba

    colour = LIGHT[SERIES[series % len(SERIES)]]
    return {"facecolor": to_rgba(colour, 0.5), "edgecolor": colour}


def _write_beside(axes: Axes, at: float, note: str) -> None:
    """Writes a note on the right of the panel, where notes form a column."""
    axes.annotate(
        note,
        (1, at),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        va="center_baseline",
        fontsize=10,
    )


def _series_legend(figure: Figure, names: Mapping[int, str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(**_look(index)) for index in names]
    _legend(figure, handles, [_short(name) for name in names.values()])


def _legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """A legend above the panels, in as few rows as possible."""
    rows = 1
    while rows < len(labels) and _letters(labels, rows) > _LINE_OF_LETTERS:
        rows += 1
    columns = math.ceil(len(labels) / rows)
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def _letters(labels: Sequence[str], rows: int) -> int:
    """The width of a legend that is filled column by column."""
    columns = (labels[at : at + rows] for at in range(0, len(labels), rows))
    return sum(max(map(len, column)) + 6 for column in columns)


def _in_lines(name: str) -> str:
    """A name such as runtime/configuration in two lines."""
    *before, last = name.split("/")
    return "\n".join([*(_short(f"{part}/") for part in before), _short(last)])


def _short(name: str, longest: int = _LONGEST) -> str:
    """A name in one line; matplotlib would hide a leading underscore."""
    line = " ".join(name.split())
    line = line if len(line) <= longest else line[: longest - 1] + "…"
    return f" {line}" if line.startswith("_") else line
