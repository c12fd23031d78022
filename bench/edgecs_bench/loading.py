"""What loading a model costs with edgecs's and llama.cpp's kernels; JSON at the end.

    python -m edgecs_bench.loading -m MODEL.gguf

The model is loaded in a new process each time, in turn with edgecs's kernels and with
llama.cpp's, after its file was read into the page cache. Seconds of the clock, and of
the processor in the program and in the system; then MiB of memory: of the process
alone, and of the mapped file, whose pages the system may drop. Other programs disturb
the clock most, and the seconds in the program least. Needs Linux.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import get_args

import click
import psutil

from edgecs.engines.host import cpu_name
from edgecs.engines.load_options import KernelChoice, LoadOptions
from edgecs.runtime.folders import Folders
from edgecs.runtime.loader import load
from edgecs_bench.text_tables import aligned

_USUAL = LoadOptions(n_ctx=2304, n_gpu_layers=0)
_BLOCK = 1 << 24  # bytes of the file that are read at once
FIGURES = ("clock_s", "program_s", "system_s", "own_mib", "file_mib")


def loading(model: Path, options: LoadOptions) -> dict[str, float | str]:
    """Load a model in this process, which has loaded none before."""
    with model.open("rb") as file:
        while file.read(_BLOCK):
            pass
    process = psutil.Process()
    began, before = time.perf_counter(), process.cpu_times()
    with load(model, options, findings=Folders().findings) as loaded:
        took, after = time.perf_counter() - began, process.cpu_times()
        own, mapped = (_resident(kind) for kind in ("RssAnon", "RssFile"))
        figures = (took, after.user - before.user, after.system - before.system)
        numbers = dict(zip(FIGURES, (*figures, own, mapped), strict=True))
        return {"kernels": loaded.options.kernels, **numbers}


def _resident(kind: str) -> float:
    """MiB of one kind of resident memory."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) / 1024
    raise click.ClickException(f"this system does not tell {kind}")


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option("-t", "--threads", default=0, help="0: one per core.")
@click.option("-r", "--rounds", default=5, show_default=True)
@click.option("--one", type=click.Choice(get_args(KernelChoice)), hidden=True)
def main(model: Path, threads: int, rounds: int, one: KernelChoice | None) -> None:
    """Compare how a model is loaded with edgecs's kernels and with llama.cpp's."""
    if one:
        options = replace(_USUAL, threads=threads, kernels=one)
        print(json.dumps(loading(model, options)))
        return
    every: dict[str, list[dict[str, float | str]]] = {"own": [], "llama": []}
    for _ in range(rounds):
        for way, rows in every.items():
            command = [sys.executable, "-m", "edgecs_bench.loading", "-m", str(model)]
            done = subprocess.run(
                [*command, "-t", str(threads), "--one", way],
                stdout=subprocess.PIPE,
                check=True,
            )
            rows.append(json.loads(done.stdout))
    medians = {
        way: {
            name: round(median(float(row[name]) for row in rows), 2) for name in FIGURES
        }
        for way, rows in every.items()
    }
    lines = [[way, *map(str, row.values())] for way, row in medians.items()]
    print("\n".join(aligned([["", *FIGURES], *lines])))
    print(
        json.dumps(
            {
                "model": model.stem,
                "cpu": cpu_name(),
                "threads": threads,
                "rounds": rounds,
                "medians": medians,
                "every": every,
            }
        )
    )


if __name__ == "__main__":
    main()
