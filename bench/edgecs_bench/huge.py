"""Speed of a model's calls with huge pages: medians, and JSON at the end.

    python -m edgecs_bench.huge -m MODEL.gguf

The model is loaded with huge pages, without, and without mapping its file, in separate
processes in turn, because the placement of pages differs from process to process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import click

from edgecs.core.context import Context
from edgecs.core.draft import score_one
from edgecs.engines.host import cpu_name
from edgecs.engines.llama import huge_pages
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import load
from edgecs_bench.text_tables import aligned

DEPTHS = (64, 1024, 4000)  # tokens of context
_CALLS, _SETTLED = 9, 2  # calls at a depth, and those that are not counted
WAYS = {
    "huge pages": LoadOptions(n_ctx=4096),
    "--no-huge-pages": LoadOptions(n_ctx=4096, huge_pages=False),
    "--no-mmap": LoadOptions(n_ctx=4096, mmap=False),
}


def calls(model: Path, options: LoadOptions) -> list[float]:
    """Median milliseconds of a call of one token at each depth."""
    found = []
    with load(model, options) as loaded:
        for depth in DEPTHS:
            context, took = Context([5] * depth), list[float]()
            loaded.target.pretend(context)
            for _ in range(_CALLS):
                began = time.perf_counter()
                score_one(loaded.target, context)
                took.append((time.perf_counter() - began) * 1e3)
                context.append([7])
            found.append(median(took[_SETTLED:]))
    return found


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option("-r", "--rounds", default=3, show_default=True)
@click.option("--one", type=click.Choice(list(WAYS)), hidden=True)
def main(model: Path, rounds: int, one: str | None) -> None:
    """Compare a model's calls with and without huge pages."""
    if one:
        print(json.dumps(calls(model, WAYS[one])))
        return
    every: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, rows in every.items():
            command = [sys.executable, "-m", "edgecs_bench.huge", "-m", str(model)]
            done = subprocess.run(
                [*command, "--one", way], stdout=subprocess.PIPE, check=True
            )
            rows.append(json.loads(done.stdout))
    milliseconds = {
        way: [round(median(column), 3) for column in zip(*rows, strict=True)]
        for way, rows in every.items()
    }
    lines = ([way, *(f"{ms:.2f}" for ms in row)] for way, row in milliseconds.items())
    print("\n".join(aligned(lines)))
    print(
        json.dumps(
            {
                "model": model.stem,
                "cpu": cpu_name(),
                "setting": huge_pages.setting(),
                "rounds": rounds,
                "depths": DEPTHS,
                "ms": milliseconds,
                "every": every,
            }
        )
    )


if __name__ == "__main__":
    main()
