"""Replays recorded scenarios with one store of texts after the other.

    python -m edgecs_bench.memory
    python -m edgecs_bench.memory --traces FILE.jsonl.gz --curve flat --leaves 1
    python -m edgecs_bench.memory --traces FILE.jsonl.gz --phrases FILE --frequent

The planner is replayed as in `edgecs_bench.simulation.replay`, with Max-Gram and the
target's last bigrams; then with the texts of the session too; with the user's store;
with Token Recycling; and with answers of the target to other questions, its phrases. A
lookup in RAM is taken to last 20 microseconds, one in another store 50. Token Recycling
learns from rows along the answer only; in use it also learns from rejected ones. Only
answers of the scenarios that are not for tuning are reported.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

import click

from edgecs_bench.memory.phrases import frequent, phrases_of, read_phrases
from edgecs_bench.memory.replay import LEVELS, Life, Played, prepared, reported
from edgecs_bench.memory.scenarios import FOLDER
from edgecs_bench.memory.summary import LAST_SESSION, summary
from edgecs_bench.memory.traces import read_answers
from edgecs_bench.report.summary import finish, table
from edgecs_bench.simulation.replay_options import (
    curves_of,
    recordings_of,
    replay_options,
)


@click.command()
@replay_options
@click.option("--leaves", default=1, show_default=True, help="Most leaves of a draft.")
@click.option(
    "--phrases",
    "built",
    type=click.Path(path_type=Path, exists=True),
    help="A file of `edgecs memory build` for the target of the traces, instead of its "
    "recorded answers to other questions.",
)
@click.option(
    "--frequent",
    "shortened",
    is_flag=True,
    help="Keep only the runs of these answers whose 5-grams are in two of them.",
)
def main(
    files: tuple[Path, ...],
    curve_file: Path | None,
    names: tuple[str, ...],
    leaves: int,
    built: Path | None,
    shortened: bool,
) -> None:
    """Replay scenarios with stores of texts."""
    others = recordings_of(())
    everything, kept = [], list[int]()
    for file in files or sorted(FOLDER.glob("*.jsonl.gz")):
        target, answers = read_answers(file)
        phrases = read_phrases(built) if built else phrases_of(target, others)
        phrases = frequent(phrases) if shortened else phrases
        kept.append(8 * sum(len(phrase) + 1 for phrase in phrases))
        everything.append(prepared(target, answers, phrases))
    if not any(not a.tuning for one in everything for a in one.answers):
        raise click.UsageError("the traces have no answer in the reported half")
    curves, thinking = {}, dict[str, list[float]]()
    for curve in curves_of(curve_file, names):
        played: dict[str, list[Played]] = {level: [] for level in LEVELS}
        for recorded in everything:
            for level in LEVELS:
                life = Life(recorded, level, curve, leaves)
                played[level] += reported(life.play())
                thinking.setdefault(level, []).extend(life.player.thinking)
        curves[curve.name] = summary(played)
        click.echo(f"{curve.name}: {curves[curve.name]}", err=True)
    last = LEVELS[-1]
    table(
        [
            {
                "curve": name,
                **{level: row["levels"][level]["over_plain"] for level in LEVELS},
                "second turn": row["second_turn_over_first"][last].get("both", 0.0),
                "eleventh": row["eleventh_session_over_maxgram"][last] or 0.0,
                "worst": min(row["categories_over_maxgram"].values()),
            }
            for name, row in curves.items()
        ]
    )
    finish(
        {
            "targets": [recorded.target for recorded in everything],
            "leaves": leaves,
            "answers": sum(map(len, played.values())) // len(LEVELS),
            "second_turn_over_first": {
                name: row["second_turn_over_first"][last]
                for name, row in curves.items()
            },
            "eleventh_session_over_maxgram": {
                name: row["eleventh_session_over_maxgram"][last]
                for name, row in curves.items()
            },
            "sessions": LAST_SESSION + 1,
            "phrases_bytes": kept,
            "recycling_on_flat": curves.get("flat", {}).get("recycling"),
            "planner_us_per_round": {
                level: round(median(of) * 1e6, 1) for level, of in thinking.items()
            },
            "curves": curves,
        }
    )


if __name__ == "__main__":
    main()
    sys.exit(0)
