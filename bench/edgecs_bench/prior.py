"""Fits the acceptance prior of new targets to traces.

    python -m edgecs_bench.prior TRACES.jsonl.gz ... -o edgecs/drafters/prior.json

Fits the log-odds of `edgecs.planning.acceptance` to the acceptance of Max-Gram's copies
and of the recorded drafters' proposals at every position: a logistic regression with a
ridge penalty, by Newton's method. Only the tuning half of the answers is used, see
`edgecs_bench.simulation.replay`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Context
from edgecs.drafters.copies import COPIED
from edgecs.drafters.maxgram import MaxGram
from edgecs.drafters.source import LOOKED_AT
from edgecs.planning.acceptance import STATED, Calibration, Evidence, stated
from edgecs.planning.neural_source import confirmed
from edgecs.planning.sources import Sources
from edgecs_bench.report.summary import finish, table
from edgecs_bench.simulation.traces import Trace, for_tuning, read_traces

_RIDGE = 3.0
_POSITIONS = 6  # positions of an answer whose proposals are stored as typical

Example = tuple[Sequence[int], bool]
"""The buckets of a token after right tokens, and whether it is right."""


def examples(trace: Trace) -> Iterator[tuple[str, Example]]:
    """Examples from every position: tokens of Max-Gram and of the drafters."""
    mag, context = MaxGram(), Context(trace.prompt)
    for at, token in enumerate(trace.output):
        rest = trace.output[at:]
        copy = mag.propose(context, LOOKED_AT)
        if at and len(copy):  # the prefill gives the first token
            tokens = copy.tokens.tolist()
            evidence = [*mag.evidence(tokens)]
            yield from labelled("copied", evidence, tokens, rest)
        for proposals in trace.proposals.values() if at else ():
            tokens, said = proposals.tokens[at], proposals.confidences[at]
            if tokens:
                same = confirmed(copy, tokens)
                yield from labelled("stated", stated(said, same), tokens, rest)
        context.append((token,))


def labelled(
    kind: str, evidence: Evidence, tokens: list[int], rest: list[int]
) -> Iterator[tuple[str, Example]]:
    """The tokens of a proposal up to the first wrong one, as examples."""
    for buckets, token, true in zip(evidence, tokens, rest, strict=False):
        yield kind, ([*buckets], token == true)
        if token != true:
            break


def fit(found: list[Example], size: int) -> tuple[NDArray[np.float64], float]:
    """The log-odds of every bucket, and the mean log-loss."""
    x = np.zeros((len(found), size))
    y = np.array([right for _, right in found], dtype=np.float64)
    for row, (buckets, _) in zip(x, found, strict=True):
        row[buckets] = 1
    weights = np.zeros(size)
    for _ in range(25):
        p = 1 / (1 + np.exp(-(x @ weights)))
        slope = x.T @ (y - p) - _RIDGE * weights
        bend = x.T @ (x * (p * (1 - p))[:, None]) + _RIDGE * np.eye(size)
        weights += np.linalg.solve(bend, slope)
    z = (x @ weights) * (2 * y - 1)
    return weights, float(np.logaddexp(0, -z).mean())


def typical(traces: Sequence[Trace], weights: NDArray[np.float64]) -> list[list[float]]:
    """Path probabilities of Max-Gram's proposals at some positions of every answer."""
    mag = MaxGram()
    mag.prior = weights.tolist()
    sources, paths = Sources([mag], Calibration()), []
    for trace in traces:
        everything = [*trace.prompt, *trace.output]
        for at in np.linspace(1, len(trace.output), _POSITIONS, endpoint=False):
            context = Context(everything[: len(trace.prompt) + int(at)])
            found = sources.propose(context, LOOKED_AT)
            paths.append([round(p, 3) for p in found.path])
    return paths


@click.command()
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(files: tuple[Path, ...], output: Path) -> None:
    """Fit the prior to traces."""
    found: dict[str, list[Example]] = {"copied": [], "stated": []}
    traces = [t for file in files for t in read_traces(file).traces if for_tuning(t)]
    for trace in traces:
        for kind, example in examples(trace):
            found[kind].append(example)
    sizes = {"copied": COPIED, "stated": STATED}
    fitted: dict[str, Any] = {}
    rows: list[dict[str, object]] = []
    for kind, size in sizes.items():
        weights, loss = fit(found[kind], size) if found[kind] else (np.zeros(size), 0.0)
        fitted[kind] = weights.round(4).tolist()
        rows.append(
            {"source": kind, "examples": len(found[kind]), "log-loss": f"{loss:.4f}"}
        )
    fitted["paths"] = typical(traces, np.array(fitted["copied"]))
    output.write_text(json.dumps(fitted) + "\n", encoding="utf-8")
    table(rows)
    finish({"output": output.name, "fits": rows})


if __name__ == "__main__":
    main()
