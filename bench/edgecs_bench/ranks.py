"""Adds the best tokens of each row to recorded traces, for replays of trees.

    python -m edgecs_bench.ranks -m TARGET.gguf [--draft SMALL.gguf] FILE.jsonl.gz

The target, and each drafter of the file, reads every recorded answer in wide calls; the
answers and proposals stay as they were recorded. `edgecs_bench.simulation.traces`
describes the fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from edgecs.core.context import Context
from edgecs.core.draft import Draft, LanguageModel, Row, score_one
from edgecs.core.logits import best_ids
from edgecs.drafters.recycling_table import RANKS
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import load, load_drafter
from edgecs_bench.simulation.traces import (
    Proposals,
    Trace,
    read_traces,
    write_traces,
)

OTHERS = 4  # further tokens of a drafter at each position
_PIECE = 32  # tokens of an answer in one call


def rows(model: LanguageModel, trace: Trace) -> Iterator[Row]:
    """The row that chooses each output token; a view until the next one."""
    model.reset()
    prompt = Context(trace.prompt)
    for start in range(0, len(trace.output), _PIECE):
        context = prompt.with_tail(trace.output[:start])
        piece = trace.output[start : start + _PIECE]
        yield from score_one(model, context, Draft.chain(piece[:-1], "target")).logits


def ranked(model: LanguageModel, trace: Trace) -> list[list[int]]:
    """The RANKS best tokens of every row, the best first."""
    return [best_ids(row, RANKS) for row in rows(model, trace)]


def with_others(model: LanguageModel, trace: Trace, said: Proposals) -> Proposals:
    """The proposals with the drafter's next best tokens at every position."""
    others, shares = [], []
    for first, row in zip(said.tokens, rows(model, trace), strict=True):
        weights = np.exp(row - row.max(), dtype=np.float64)
        weights /= weights.sum()
        ids = [i for i in best_ids(row, OTHERS + 1) if i != first[0]][:OTHERS]
        others.append(ids)
        shares.append([float(weights[i]) for i in ids])
    return replace(said, others=others, shares=shares)


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option("--draft", "drafts", type=click.Path(path_type=Path), multiple=True)
@click.option("-c", "--ctx-size", "n_ctx", default=4096, show_default=True)
@click.argument("file", type=click.Path(path_type=Path))
def main(model: Path, drafts: tuple[Path, ...], n_ctx: int, file: Path) -> None:
    """Add the best tokens of each row to a trace file."""
    recording = read_traces(file)
    if recording.temperature:
        raise click.UsageError(
            f"{file} was recorded at temperature {recording.temperature:g}, but the "
            "order of the logits is that of the choices only at 0"
        )
    with ExitStack() as closing:
        loaded = closing.enter_context(load(model, LoadOptions(n_ctx=n_ctx)))
        drafters = [closing.enter_context(load_drafter(p, loaded)) for p in drafts]
        if {drafter.name for drafter in drafters} != set(recording.drafters):
            raise click.UsageError(
                f"{file} has the drafters {', '.join(recording.drafters) or 'none'}: "
                "give these with --draft"
            )
        traces = []
        for trace in recording.traces:
            said = {
                drafter.name: with_others(
                    drafter.model, trace, trace.proposals[drafter.name]
                )
                for drafter in drafters
            }
            best = ranked(loaded.target, trace)
            traces.append(replace(trace, ranked=best, proposals=said))
            click.echo(f"{trace.category} {trace.id}", err=True)
    write_traces(file, replace(recording, traces=tuple(traces)))


if __name__ == "__main__":
    main()
