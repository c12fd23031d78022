"""Measures the speed beside other programs: a table, and JSON at the end.

    python -m edgecs_bench.busy -m MODEL.gguf

Tokens per second of plain decoding, alone and beside programs that compute
continuously: with threads pinned to separate cores (`--cpu-strict`), without pinning,
and with one thread fewer. Each configuration runs in its own process, in turn.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import click
import psutil

from edgecs.core.context import Context
from edgecs.core.draft import score_one
from edgecs.engines.host import cpu_name
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import Loaded, load
from edgecs_bench.text_tables import aligned

STATES = ("idle", "busy")
_CORES = psutil.cpu_count(logical=False) or 1
_NOW, _BEFORE = "--cpu-strict", "--no-cpu-strict"
WAYS = {
    _NOW: LoadOptions(n_ctx=2048),
    _BEFORE: LoadOptions(n_ctx=2048, cpu_strict=False),
    "-t cores-1": LoadOptions(n_ctx=2048, threads=max(1, _CORES - 1)),
}
_DEPTH = 64  # tokens of context at the start
_SETTLES = 0.3  # seconds until the scheduler has placed a new program


def speeds(model: Path, way: str, hogs: int, seconds: float) -> dict[str, float]:
    """Tokens per second alone and beside `hogs` busy programs."""
    with load(model, WAYS[way]) as loaded:
        _speed(loaded, seconds / 4)
        alone = _speed(loaded, seconds)
        with others(hogs):
            return {"idle": alone, "busy": _speed(loaded, seconds)}


@contextmanager
def others(count: int) -> Iterator[None]:
    """Runs programs that compute until the block ends."""
    command = [sys.executable, "-c", "while True: pass"]
    started = [subprocess.Popen(command) for _ in range(count)]
    try:
        time.sleep(_SETTLES)
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def _speed(loaded: Loaded, seconds: float) -> float:
    """Tokens per second over some seconds, and at least one token."""
    context, done, took = Context([5] * _DEPTH), 0, 0.0
    loaded.target.pretend(context)
    began = time.perf_counter()
    while took < seconds and len(context) < loaded.target.n_ctx - 1:
        score_one(loaded.target, context)
        context.append([7])
        done, took = done + 1, time.perf_counter() - began
    return done / took


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option("-r", "--rounds", default=5, show_default=True)
@click.option("--hogs", default=1, show_default=True, help="Number of busy programs.")
@click.option(
    "--seconds", default=2.0, show_default=True, help="Length of a measurement."
)
@click.option("--one", type=click.Choice(list(WAYS)), hidden=True)
def main(model: Path, rounds: int, hogs: int, seconds: float, one: str | None) -> None:
    """Measure a model's speed beside other programs."""
    if one:
        print(json.dumps(speeds(model, one, hogs, seconds)))
        return
    every: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, rows in every.items():
            command = [sys.executable, "-m", "edgecs_bench.busy", "-m", str(model)]
            command += ["--hogs", str(hogs), "--seconds", str(seconds), "--one", way]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            rows.append(json.loads(done.stdout))
    found = {
        way: {state: median(row[state] for row in rows) for state in STATES}
        for way, rows in every.items()
    }
    lines = [["tokens/s", "idle", "busy", "busy/idle"]]
    for way, speed in found.items():
        idle, busy = speed["idle"], speed["busy"]
        lines.append([way, f"{idle:.1f}", f"{busy:.1f}", f"{busy / idle:.2f}"])
    print("\n".join(aligned(lines)))
    print(
        json.dumps(
            {
                "model": model.stem,
                "cpu": cpu_name(),
                "cores": _CORES,
                "hogs": hogs,
                "rounds": rounds,
                "busy_over_idle": round(found[_NOW]["busy"] / found[_NOW]["idle"], 3),
                "idle_over_before": round(
                    found[_NOW]["idle"] / found[_BEFORE]["idle"], 3
                ),
                "busy_over_before": round(
                    found[_NOW]["busy"] / found[_BEFORE]["busy"], 3
                ),
                "every": every,
            }
        )
    )


if __name__ == "__main__":
    main()
