"""What a neural drafter's opinion says about a copy, and what the planner knows of it.

    python -m edgecs_bench.simulation.selection FILE.jsonl.gz ...

Retrieval-augmented speculative decoding (RASD) ends a copy at a token to which a neural
drafter gives little probability. At every position of recorded answers Max-Gram's first
token is compared with the drafter's: how often it is right, and the probability that
the planner's calibration gives it without this opinion. A planner that lets the drafter
write takes the drafter's token, so the copy is used after the drafted tokens only,
where the drafter has no row. There the copies are divided by whether Max-Gram's own
proposal for the beginning of the draft agreed with all of its tokens. The last line is
JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Draft
from edgecs.drafters.maxgram import MaxGram
from edgecs.planning.acceptance import Acceptance, Calibration
from edgecs.planning.neural_source import confirmed
from edgecs_bench.report.summary import finish, table
from edgecs_bench.simulation.traces import Trace, read_traces

DRAFTED = 3  # tokens of a draft after which a copy is considered
_COPIED = 8  # tokens of a copy that are compared
_SURE = 0.8  # probability of a drafter's token from which it is sure


class Copied(NamedTuple):
    """A token of Max-Gram, and what was known about it."""

    case: str
    predicted: float  # by the calibration
    right: bool


def copies(trace: Trace, drafter: str) -> Iterator[Copied]:
    """The first tokens of copies, and those after right tokens of the drafter."""
    mag, said = MaxGram(), trace.proposals[drafter]
    acceptance, context = Calibration().source(mag), Context(trace.prompt)
    for at, token in enumerate(trace.output):
        rest, tokens = trace.output[at:], said.tokens[at]
        copy = mag.continuation(context, _COPIED)
        if at and copy and tokens:
            odds, stated = _odds(mag, acceptance, copy), said.confidences[at][0]
            case = "first, drafter agrees"
            if copy[0] != tokens[0]:
                case = "first, drafter differs"
                case += " and is sure" if stated >= _SURE else ""
            yield Copied(case, odds, copy[0] == rest[0])
        proposed = Draft.chain(copy, mag.name) if copy else NOTHING
        for size in range(1, min(DRAFTED, len(tokens), len(rest) - 1) + 1 if at else 1):
            if tokens[:size] != rest[:size]:
                break
            tail = mag.continuation(context.with_tail(tokens[:size]), 1)
            if tail:
                case = (
                    f"after a draft, {_agreement(confirmed(proposed, tokens[:size]))}"
                )
                yield Copied(case, _odds(mag, acceptance, tail), tail[0] == rest[size])
        context.append((token,))


def _odds(mag: MaxGram, acceptance: Acceptance, tokens: list[int]) -> float:
    return acceptance.odds(next(mag.evidence(tokens)))


def _agreement(same: list[bool | None]) -> str:
    if all(same):
        return "copy agreed"
    return "copy differed" if False in same else "no copy before"


@click.command()
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
def main(files: tuple[Path, ...]) -> None:
    """Compare copies with the opinions of neural drafters."""
    rows: list[dict[str, object]] = []
    for file in files:
        recording = read_traces(file)
        for drafter in recording.drafters:
            found: dict[str, list[Copied]] = {}
            for trace in recording.traces:
                for one in copies(trace, drafter):
                    found.setdefault(one.case, []).append(one)
            rows += [
                {
                    "drafter": drafter,
                    "case": case,
                    "tokens": len(of),
                    "predicted": round(float(np.mean([c.predicted for c in of])), 3),
                    "right": round(float(np.mean([c.right for c in of])), 3),
                }
                for case, of in sorted(found.items())
            ]
    if not rows:
        raise click.UsageError("the traces have no proposals of a drafter")
    table(rows)
    finish({"cases": rows})


if __name__ == "__main__":
    main()
    sys.exit(0)
