"""Measures a target on two workers, with and without drafts, by the network's delay.

    python -m edgecs_bench.rpc -m TARGET.gguf [--draft NAME] [-t N] [--delay MS ...]

Two workers on this machine hold the layers, behind proxies that delay every byte by so
many milliseconds in each direction (`edgecs_bench.rpc.delay`). The prompts are
summaries of Spec-Bench, answered without drafts and as planned, in turn.
Every answer is compared with that of one process with llama.cpp's kernels, without
repacked weights, which workers have neither. At last a worker is killed in the middle
of an answer. The last line is JSON: for every delay the tokens per second of both (the
median of a prompt's repeats, then the mean of the prompts), their ratio, the seconds of
calls by width, the widths of the rounds, and whether all ids are those of one process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean, median
from typing import Any

import click
import numpy as np

from edgecs.calibrate.bundled_drafters import all_bundled
from edgecs.calibrate.probe import curve
from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.core.context import Tokens
from edgecs.decoding.cascade import NamedModel
from edgecs.engines.host import cpu_name
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import EdgecsError, WorkerError
from edgecs.runtime.builder import load_drafters
from edgecs.runtime.loader import Loaded, load
from edgecs_bench.answering import answer
from edgecs_bench.run.runner import encoder
from edgecs_bench.suite.suites import suite
from edgecs_bench.text_tables import aligned

PLAIN, PLANNED = "plain", "planned"
WIDTHS = (1, 2, 4, 8, 16, 32)  # of the calls that are timed
_CONTEXT = 4096  # tokens
_SPOKEN = 8  # tokens of an answer before its worker is killed
_AT = 512  # tokens of context at which calls are timed


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program whose output is read here; it is killed at the end."""
    command = [sys.executable, "-m", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as started:
        try:
            yield started
        finally:
            started.kill()


@contextmanager
def workers(threads: int, count: int = 2) -> Iterator[list[tuple[Any, str]]]:
    """Some workers: their processes and addresses."""
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            options = ("--port", "0", "-t", str(threads))
            one = stack.enter_context(process("edgecs", "worker", *options))
            assert one.stdout is not None
            said = one.stdout.readline()
            if " --rpc " not in said:
                raise click.ClickException(f"a worker does not start: {said.strip()}")
            found.append((one, said.split(" --rpc ")[1].strip()))
        yield found


@contextmanager
def delayed(addresses: Sequence[str], milliseconds: float) -> Iterator[str]:
    """The addresses of proxies in front of the workers, as for --rpc."""
    with ExitStack() as stack:
        ports = []
        for address in addresses:
            arguments = ("edgecs_bench.rpc.delay", address, str(milliseconds))
            one = stack.enter_context(process(*arguments))
            assert one.stdout is not None
            ports.append(one.stdout.readline().strip())
        yield ",".join(f"127.0.0.1:{port}" for port in ports)


def measured(
    loaded: Loaded,
    drafters: Sequence[NamedModel],
    prompts: Sequence[Tokens],
    expected: Sequence[list[int]],
    most: int,
    repeats: int,
) -> dict[str, Any]:
    """The result of one delay."""
    known = SpeculationProfile(loaded.target)
    known.prepare(loaded.seconds)
    took = curve(loaded.target, _AT, WIDTHS, repeats=3)
    known.costs.measured(_AT, took)
    planner = known.planner(drafters, ends=loaded.model.vocabulary.ends)
    rates: dict[str, list[float]] = {PLAIN: [], PLANNED: []}
    widths, identical = Counter[int](), True
    for prompt, ids in zip(prompts, expected, strict=True):
        loaded.target.reset()
        found: dict[str, list[float]] = {PLAIN: [], PLANNED: []}
        for repeat in range(repeats):
            for way in (PLAIN, PLANNED) if repeat % 2 else (PLANNED, PLAIN):
                schedule = planner if way == PLANNED else None
                said = answer(loaded, schedule, known, prompt, most)
                found[way].append(said.rate)
                identical &= said.tokens == ids
                if way == PLANNED:
                    widths.update(said.stats.rounds_by_width)
        for way, several in found.items():
            rates[way].append(median(several))
    means = {way: round(fmean(several), 3) for way, several in rates.items()}
    return {
        "tokens_per_second": means,
        "ratio": round(means[PLANNED] / means[PLAIN], 3),
        "by_prompt": {
            way: [round(one, 3) for one in several] for way, several in rates.items()
        },
        "call_ms": {width: round(took[width] * 1e3, 2) for width in took},
        "rounds_by_width": {width: widths[width] for width in sorted(widths)},
        "identical": identical,
    }


def killed(loaded: Loaded, one: Any, prompt: Tokens, most: int) -> dict[str, Any]:
    """What becomes of an answer whose worker is killed."""
    count, when = 0, 0.0

    def kill(tokens: int) -> None:
        nonlocal count, when
        count = tokens
        if tokens == _SPOKEN:
            one.kill()
            one.wait()
            when = time.perf_counter()

    try:
        answer(loaded, None, None, prompt, most, kill)
    except WorkerError as error:
        seconds = round(time.perf_counter() - when, 3)
        return {"tokens": count, "error": str(error), "seconds": seconds}
    raise click.ClickException("the answer went on without its worker")


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option(
    "--draft",
    "names",
    multiple=True,
    help="A drafter besides Max-Gram: a bundled one by name, a GGUF or a folder.",
)
@click.option("-t", "--threads", default=1, show_default=True, help="Of every worker.")
@click.option(
    "--delay",
    "delays",
    type=click.FloatRange(0),
    multiple=True,
    default=(0, 1, 5, 20),
    show_default=True,
    help="Milliseconds in each direction; may be repeated.",
)
@click.option("-n", "most", type=click.IntRange(16), default=96, show_default=True)
@click.option("-r", "repeats", type=click.IntRange(1), default=1, show_default=True)
@click.option("--prompts", "count", type=click.IntRange(1), default=3)
def main(
    model: Path,
    names: tuple[str, ...],
    threads: int,
    delays: tuple[float, ...],
    most: int,
    repeats: int,
    count: int,
) -> None:
    """Measure a target on two workers by the delay of the network."""
    asked = suite(["spec-bench"], ["summarization"], count).prompts
    alone = LoadOptions(
        n_ctx=_CONTEXT, threads=threads, n_gpu_layers=0, kernels="llama", repack=False
    )
    here = LoadOptions(n_ctx=0, threads=threads)
    drafts = [all_bundled().get(name, Path(name)) for name in names]
    found: dict[str, Any] = {}
    try:
        with load(model, alone) as loaded:
            encode = encoder(loaded)
            prompts = [np.array(encode(one.text), dtype=np.int32) for one in asked]
            expected = [
                answer(loaded, None, None, prompt, most).tokens for prompt in prompts
            ]
        with workers(threads) as started:
            addresses = [address for _, address in started]
            for delay in delays:
                with delayed(addresses, delay) as rpc:
                    remote = LoadOptions(n_ctx=_CONTEXT, rpc=rpc, n_gpu_layers="all")
                    with ExitStack() as closing:
                        loaded = closing.enter_context(load(model, remote))
                        named = [
                            one.named
                            for one in load_drafters(drafts, loaded, here, closing)
                        ]
                        one = measured(loaded, named, prompts, expected, most, repeats)
                        found[f"{delay:g}"] = one
                        click.echo(f"{delay:g} ms: {json.dumps(one)}")
                        if delay == delays[-1]:
                            lost = killed(loaded, started[-1][0], prompts[0], most)
    except EdgecsError as error:
        raise click.ClickException(str(error)) from error
    heads = ["delay (ms)", PLAIN, PLANNED, "ratio", "as one process"]
    rows = [
        [
            delay,
            *(f"{one['tokens_per_second'][way]:.2f}" for way in (PLAIN, PLANNED)),
            f"{one['ratio']:.2f}",
            "yes" if one["identical"] else "NO",
        ]
        for delay, one in found.items()
    ]
    click.echo("\n".join(aligned([heads, *rows])))
    head = {
        "model": model.stem,
        "drafters": [*names],
        "cpu": cpu_name(),
        "workers": 2,
        "threads": threads,
        "prompts": [one.id for one in asked],
        "prompt_tokens": [int(prompt.size) for prompt in prompts],
        "tokens": most,
        "repeats": repeats,
    }
    click.echo(json.dumps({**head, "delays": found, "killed": lost}))


if __name__ == "__main__":
    main()
