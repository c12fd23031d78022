"""The plot of a tuning: costs of calls, and speed-ups of chains."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgecs.tuning.comparison import PLAIN
from edgecs.tuning.cost_sweep import tiles
from edgecs.tuning.tuner import Tuned
from edgecs_bench.report.canvas import LIGHT, open_figure, saved

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (800, 360)  # points
_ROWS = 5  # minimum number of chains with room in the plot
_INK, _PAPER, _STRONG, _MARK = (LIGHT[name] for name in ("ink", "paper", "s0", "s1"))
_PALE = "#b8c4d6"


def draw(path: Path, title: str, tuned: Tuned) -> None:
    """Writes a .png or .svg file. Raises OSError."""
    form = path.suffix.lower().removeprefix(".")
    path.write_bytes(saved(partial(_figure, title, tuned), form))


def _figure(title: str, tuned: Tuned) -> Figure:
    figure = open_figure(*_SIZE)
    figure.suptitle(title)
    costs, chains = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_costs(costs, tuned)
    _draw_chains(chains, tuned)
    return figure


def _draw_costs(axes: Axes, tuned: Tuned) -> None:
    """Relative time by width; above the dotted line a call never pays."""
    first, *deeper = tuned.curves
    widths = list(first.seconds)
    relative = {n: s / first.seconds[1] for n, s in first.seconds.items()}
    top = 1.1 * max(relative.values())
    for curve in deeper:
        values = [s / curve.seconds[1] for s in curve.seconds.values()]
        top = max(top, 1.1 * max(values))
        axes.plot(list(curve.seconds), values, color=_PALE, linewidth=1, zorder=1)
        axes.annotate(f" {curve.depth}", (max(curve.seconds), values[-1]))
    axes.plot(widths, widths, ":", color=_INK, label="break-even: all drafts right")
    axes.plot(
        widths,
        list(relative.values()),
        "o-",
        color=_STRONG,
        markersize=4,
        label=f"after {first.depth} tokens (thin: deeper)",
    )
    cheaper = tiles(first.seconds)
    axes.plot(
        list(cheaper),
        [relative[n] for n in cheaper],
        "o",
        color=_PAPER,
        markeredgecolor=_STRONG,
        markersize=6,
        label="a wider call takes less",
    )
    ends = sorted(set(cheaper.values()))
    axes.plot(
        ends, [relative[n] for n in ends], "s", color=_MARK, label="end of a tile"
    )
    axes.set(xlabel="tokens in a call", ylabel="time, relative to one token")
    axes.set(xlim=(0, max(widths) + 2), ylim=(0, top))
    axes.legend(loc="upper left")


def _draw_chains(axes: Axes, tuned: Tuned) -> None:
    """Expected and measured speed of every chain over plain decoding."""
    trials = tuned.compared.trials
    plain = tuned.expected[PLAIN]
    for at, trial in enumerate(trials):
        strong = _STRONG if trial is tuned.chosen else _INK
        axes.barh(at - 0.2, tuned.expected[trial.chain] / plain, 0.36, color=_PALE)
        axes.barh(at + 0.2, trial.mean, 0.36, color=strong)
        if trial.ratios:
            ratios = list(trial.ratios.values())
            axes.plot(ratios, [at + 0.2] * len(ratios), "|", color=_MARK, markersize=12)
    axes.axvline(1, color=_INK, linestyle=":")
    axes.set_yticks(range(len(trials)), [trial.chain.name for trial in trials])
    axes.set_ylim(max(_ROWS, len(trials)) - 0.5, -0.5)  # the first chain on top
    axes.set(xlabel="speed, relative to plain decoding")
    axes.set_title(
        "light: expected, dark: measured, blue: chosen\norange: each kind of task",
        fontsize="medium",
    )
