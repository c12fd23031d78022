"""Fits the acceptance priors of stores and Token Recycling to the tuning scenarios.

    python -m edgecs_bench.memory.prior

The log-odds are fitted as by `edgecs_bench.prior`. Every source is asked at every
position of the answers, after Max-Gram, with which stores are compared; Token Recycling
learns from the rows along the answers. The last line is JSON with the log-odds of every
bucket of a source, for its `prior`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from edgecs.core.context import Context
from edgecs.drafters import recalled, recycling
from edgecs.drafters.maxgram import MaxGram
from edgecs.drafters.phrased import Phrased
from edgecs.drafters.recalled import Recalled
from edgecs.drafters.recycling import Recycling
from edgecs.drafters.registry import PHRASES, RECENT, USER
from edgecs.drafters.source import LOOKED_AT, Source, StoreSource
from edgecs_bench.memory.phrases import phrases_of
from edgecs_bench.memory.replay import Recorded, prepared
from edgecs_bench.memory.scenarios import FOLDER
from edgecs_bench.memory.stores import FoundTexts, SessionSource
from edgecs_bench.memory.traces import read_answers
from edgecs_bench.prior import Example, fit, labelled
from edgecs_bench.report.summary import finish, table
from edgecs_bench.simulation.replay_drafter import Watch
from edgecs_bench.simulation.replay_options import recordings_of

_BUCKETS = {
    RECENT: recalled.BUCKETS,
    USER: recalled.BUCKETS,
    PHRASES: recalled.BUCKETS,
    "recycling": recycling.BUCKETS,
}


def examples(recorded: Recorded) -> Iterator[tuple[str, Example]]:
    """What the sources propose at every position of the tuning answers."""
    watch, mag, rows = Watch(), MaxGram(), Recycling()
    session, found = SessionSource(watch, RECENT), FoundTexts(recorded.user, watch)
    phrases = FoundTexts(recorded.phrases, watch)
    stores = [session, Recalled(found, USER), Phrased(phrases, PHRASES)]
    sources: list[Source] = [*stores, rows]
    here = None
    for number, answer in enumerate(recorded.answers):
        if not answer.tuning:
            continue
        if here != (here := (answer.scenario, answer.place.session)):
            session.restart()
        found.hear(number)
        phrases.hear(number)
        context = Context([*answer.prompt, answer.output[0]])
        for at in range(1, len(answer.output)):
            beside = mag.continuation(context, LOOKED_AT)
            rest = answer.output[at:]
            for source in sources:
                tokens = source.continuation(context, LOOKED_AT)
                if isinstance(source, StoreSource):
                    source.compare(beside)
                    beside = beside or tokens
                evidence = [*source.evidence(tokens)]
                yield from labelled(source.name, evidence, tokens, rest)
            rows.learn(context.tokens[-2:].tolist(), answer.ranked[at])
            context.append(rest[:1])


@click.command()
@click.option("--traces", "files", type=click.Path(path_type=Path), multiple=True)
def main(files: tuple[Path, ...]) -> None:
    """Fit the priors of stores and of Token Recycling."""
    found: dict[str, list[Example]] = {}
    others = recordings_of(())
    for file in files or sorted(FOLDER.glob("*.jsonl.gz")):
        target, answers = read_answers(file)
        recorded = prepared(target, answers, phrases_of(target, others))
        for name, example in examples(recorded):
            found.setdefault(name, []).append(example)
    rows: list[dict[str, object]] = []
    fitted: dict[str, Any] = {}
    for name, examples_of in found.items():
        weights, loss = fit(examples_of, _BUCKETS[name])
        fitted[name] = weights.round(4).tolist()
        right = sum(is_right for _, is_right in examples_of) / len(examples_of)
        rows.append(
            {
                "source": name,
                "examples": len(examples_of),
                "right": f"{right:.3f}",
                "log-loss": f"{loss:.4f}",
            }
        )
    if not rows:
        raise click.UsageError("the traces have no answer in the tuning half")
    table(rows)
    finish({"fits": rows, "priors": fitted})


if __name__ == "__main__":
    main()
    sys.exit(0)
