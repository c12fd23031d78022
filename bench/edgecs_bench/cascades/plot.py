"""The plot of a cascade sweep: quality against speed, a line for each rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecs_bench.cascades.ways import LARGE, kind
from edgecs_bench.report.canvas import LIGHT, open_figure, saved
from edgecs_bench.report.figures import SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 800, 380  # points


def draw(path: Path, result: Mapping[str, Any]) -> None:
    """Writes a .png or .svg file. Raises OSError."""
    form = path.suffix.lower().removeprefix(".")
    path.write_bytes(saved(partial(_figure, result["rows"]), form))


def _figure(rows: list[dict[str, Any]]) -> Figure:
    """A panel for each temperature; pass@1 as quality where code was run."""
    temperatures = sorted({row["temperature"] for row in rows})
    figure = open_figure(_WIDTH, _HEIGHT)
    panels = figure.subplots(1, len(temperatures), squeeze=False)[0]
    for axes, temperature in zip(panels, temperatures, strict=True):
        _draw(axes, [row for row in rows if row["temperature"] == temperature])
        axes.set_title(f"temperature {temperature:g}", fontsize="medium")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=5)
    return figure


def _draw(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Speed where it was measured, otherwise calls of the target for each token."""
    tested = any(row["problems"] for row in rows)
    at_speed = any(row["speed"] for row in rows)
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        quality = row["agreement"]
        if tested:
            quality = row["passed"] / row["problems"] if row["problems"] else None
        price = row["speed" if at_speed else "calls"]
        if quality is not None and price is not None:
            lines[kind(row["way"])].append((price, quality))
    for at, (name, points) in enumerate(lines.items()):
        colour = LIGHT[SERIES[at % len(SERIES)]]
        style = "o-" if len(points) > 1 else "s"
        axes.plot(*zip(*points, strict=True), style, color=colour, label=name)
    axes.set(xlabel=f"speed, relative to {LARGE}")
    if not at_speed:
        axes.set(xlabel="calls of the large model for each token")
        axes.invert_xaxis()  # cheaper ways on the right, like faster ones
    axes.set(ylabel="pass@1" if tested else "agreement with large")
