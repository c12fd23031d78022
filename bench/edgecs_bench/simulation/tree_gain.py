"""Replays recorded answers with chains and with trees, on given cost curves.

    python -m edgecs_bench.simulation.tree_gain
    python -m edgecs_bench.simulation.tree_gain --curves FILE.json --leaves 4

The planner is replayed as in `edgecs_bench.simulation.replay`, warm, first with the
usual sources and chains, then with Token Recycling too, then with trees of both. Only
recordings with the target's ranked tokens (`edgecs_bench.ranks`) are replayed. The
table learns from rows along the answer only; in use it also learns from rejected ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import click

from edgecs.drafters.registry import usual_sources
from edgecs.drafters.source import Source
from edgecs_bench.hardware.curves import Curve
from edgecs_bench.report.summary import finish, table
from edgecs_bench.simulation.replay import Player, recycled
from edgecs_bench.simulation.replay_options import (
    curves_of,
    ranked_of,
    replay_options,
)
from edgecs_bench.simulation.traces import Recording, for_tuning


def played(
    recordings: Sequence[Recording],
    curve: Curve,
    sources: Callable[[], Sequence[Source]],
    leaves: int,
) -> dict[str, float]:
    """Speed over plain decoding, and the rounds, of the reported half."""
    spent = 0.0
    widths, thinking, tokens = list[int](), list[float](), 0
    for recording in recordings:
        said = [trace for trace in recording.traces if len(trace.output) > 1]
        player = Player(curve, recording.drafters, sources=sources(), leaves=leaves)
        for trace in filter(for_tuning, said):
            player.play(trace)
        player.widths.clear()
        player.thinking.clear()
        for trace in said:
            if not for_tuning(trace):
                spent += player.play(trace)
                tokens += len(trace.output) - 1
        widths += player.widths
        thinking += player.thinking
    plain = tokens * curve.round(1)
    return {
        "over_plain": round(plain / spent, 4),
        "tokens_per_round": round(tokens / len(widths), 3),
        "width": round(mean(widths), 2),
        "planner_us": round(median(thinking) * 1e6, 1),
    }


def compared(
    recordings: Sequence[Recording], curve: Curve, leaves: int
) -> dict[str, Any]:
    """The three ways to draft, and the gain of trees over the usual chains."""
    chains = played(recordings, curve, usual_sources, 1)
    table_chains = played(recordings, curve, recycled, 1)
    trees = played(recordings, curve, recycled, leaves)
    return {
        "gain": round(trees["over_plain"] / chains["over_plain"], 4),
        "chains": chains,
        "chains_with_recycling": table_chains,
        "trees": trees,
    }


def _shown(row: dict[str, Any]) -> dict[str, object]:
    """The speeds of a row, and the widths with trees."""
    kinds = ("chains", "chains_with_recycling", "trees")
    speeds = {kind: row[kind]["over_plain"] for kind in kinds}
    return {**speeds, "gain": row["gain"], "width": row["trees"]["width"]}


@click.command()
@replay_options
@click.option("--leaves", default=8, show_default=True, help="Most leaves of a draft.")
def main(
    files: tuple[Path, ...],
    curve_file: Path | None,
    names: tuple[str, ...],
    leaves: int,
) -> None:
    """Compare chains and trees in replay."""
    recordings, curves = ranked_of(files), curves_of(curve_file, names)
    results = {}
    for curve in curves:
        results[curve.name] = compared(recordings, curve, leaves)
        click.echo(f"{curve.name}: {results[curve.name]}", err=True)
    table([{"curve": name, **_shown(row)} for name, row in results.items()])
    targets = [recording.target for recording in recordings]
    finish({"targets": targets, "leaves": leaves, "curves": results})


if __name__ == "__main__":
    main()
    sys.exit(0)
