"""Compares the planner's trees with Sequoia's and DySpec's in replay.

    python -m edgecs_bench.simulation.tree_algorithms
    python -m edgecs_bench.simulation.tree_algorithms --curves FILE.json

Recorded answers are replayed as in `edgecs_bench.simulation.tree_gain`, with the same
sources and siblings for all (`tree_schedules`):

- chains, trees: the planner, which chooses the number of nodes in every round.
- sequoia: the tree of the dynamic program for the shares of right ranks in the tuning
  half, with one number of nodes.
- dyspec: the most probable nodes of the round, with one number of nodes; and by a
  threshold of their path probability.

The number of nodes and the threshold are those with the highest speed on the tuning
half, for each curve; none at all is possible.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import click

from edgecs.costs.cost_model import WIDEST
from edgecs_bench.hardware.curves import CURVES, Curve
from edgecs_bench.report.summary import finish, table
from edgecs_bench.simulation.replay import Player, recycled
from edgecs_bench.simulation.replay_options import (
    curves_of,
    ranked_of,
    replay_options,
)
from edgecs_bench.simulation.traces import Recording, for_tuning
from edgecs_bench.simulation.tree_gain import played
from edgecs_bench.simulation.tree_schedules import Grown, Shaped
from edgecs_bench.simulation.tree_shapes import sequoia

SIZES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, WIDEST - 1)  # nodes
THRESHOLDS = (0.6, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05, 0.03)
_LEVELS = 8  # of a static tree
_LEAVES = WIDEST  # of the planner's trees: no limit, as the others have none


@dataclass
class Rounds:
    """The rounds of replayed answers, which hold for every cost curve."""

    widths: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    tokens: int = 0  # without the first of each answer

    def over_plain(self, curve: Curve) -> float:
        """Speed over plain decoding with the times of a curve."""
        spent, before, last = 0.0, 1, 0
        for width, depth in zip(self.widths, self.depths, strict=True):
            spent += curve.call(width, depth) + curve.overhead
            if width == 1 < before and depth > last:  # in the same answer
                spent += curve.settling
            before, last = width, depth
        return self.tokens * curve.round(1) / spent


class Halves(NamedTuple):
    """The rounds of both halves of the answers."""

    tuning: Rounds
    reported: Rounds


def replayed(recordings: Sequence[Recording], schedule: Grown) -> Halves:
    """Replay all answers, first those of the tuning half."""
    halves = Halves(Rounds(), Rounds())
    for recording in recordings:
        said = [trace for trace in recording.traces if len(trace.output) > 1]
        player = Player(CURVES[0], (), sources=schedule.sources)
        player.schedule = schedule
        for half, tunes in zip(halves, (True, False), strict=True):
            for trace in said:
                if for_tuning(trace) is tunes:
                    player.play(trace)
                    half.tokens += len(trace.output) - 1
            half.widths += player.widths
            half.depths += player.depths
            player.widths.clear()
            player.depths.clear()
    return halves


def best_of(ways: Mapping[float, Halves], curve: Curve) -> dict[str, float]:
    """The setting that is fastest on the tuning half, and its speed on the other."""
    setting = max(ways, key=lambda one: ways[one].tuning.over_plain(curve))
    rounds = ways[setting].reported
    return {
        "over_plain": round(rounds.over_plain(curve), 4),
        "tokens_per_round": round(rounds.tokens / len(rounds.widths), 3),
        "width": round(mean(rounds.widths), 2),
        "setting": setting,
    }


def fixed(recordings: Sequence[Recording]) -> dict[str, dict[float, Halves]]:
    """The replays of the schedules that do not look at times."""
    # The ranks are counted while nothing is drafted.
    counting = Shaped(recycled(), ())
    for recording in recordings:
        player = Player(CURVES[0], (), sources=counting.sources)
        player.schedule = counting
        for trace in recording.traces:
            if len(trace.output) > 1 and for_tuning(trace):
                player.play(trace)
    shapes = sequoia(counting.chances(), max(SIZES), _LEVELS)
    ways: dict[str, dict[float, Halves]] = {
        "sequoia": {
            n: replayed(recordings, Shaped(recycled(), shapes[n].shape)) for n in SIZES
        },
        "dyspec": {n: replayed(recordings, Grown(recycled(), most=n)) for n in SIZES},
        "dyspec_threshold": {
            least: replayed(recordings, Grown(recycled(), least=least))
            for least in THRESHOLDS
        },
    }
    ways["dyspec_threshold"][1.0] = ways["dyspec"][0]  # no node at all
    return ways


def compared(
    recordings: Sequence[Recording],
    curve: Curve,
    ways: Mapping[str, dict[float, Halves]],
) -> dict[str, dict[str, float]]:
    """The results of every way to draft on one curve."""
    return {
        "chains": played(recordings, curve, recycled, 1),
        "trees": played(recordings, curve, recycled, _LEAVES),
        **{name: best_of(settings, curve) for name, settings in ways.items()},
    }


@click.command()
@replay_options
def main(
    files: tuple[Path, ...], curve_file: Path | None, names: tuple[str, ...]
) -> None:
    """Compare ways to choose the nodes of trees in replay."""
    recordings, curves = ranked_of(files), curves_of(curve_file, names)
    ways, results = fixed(recordings), {}
    for curve in curves:
        results[curve.name] = compared(recordings, curve, ways)
        click.echo(f"{curve.name}: {results[curve.name]}", err=True)
    table(
        [
            {"curve": name, **{way: row[way]["over_plain"] for way in row}}
            for name, row in results.items()
        ]
    )
    targets = [recording.target for recording in recordings]
    finish({"targets": targets, "curves": results})


if __name__ == "__main__":
    main()
    sys.exit(0)
