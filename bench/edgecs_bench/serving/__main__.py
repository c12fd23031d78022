"""Goodput and latency of edgecs serve and of llama.cpp's server: a table, and JSON.

    python -m edgecs_bench.serving -m MODEL.gguf --seconds 30 --rounds 6

Both servers are loaded; they answer in turn, never at the same time. All streams of a
block share the prompts of a suite. Goodput is the number of tokens of whole answers per
second. A gap is the time between two pieces of text of a stream; a piece may have more
than one token. A token gap is that between two tokens: 0 for tokens of one piece.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

import click
from platformdirs import user_cache_path

from edgecs.engines.host import cpu_name
from edgecs_bench.serving.clients import Stream, load
from edgecs_bench.serving.servers import Edgecs, Running, Xllamacpp
from edgecs_bench.suite.suites import suite
from edgecs_bench.text_tables import aligned

_CONTEXT = 2048  # tokens of a slot; longer prompts are left out
_LONGEST = 4000  # characters of a prompt
_SHOWN = (
    "goodput",
    "first_p50",
    "first_p99",
    "gap_p50",
    "gap_p99",
    "token_gap_p99",
    "gap_max",
)


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option("--streams", default="1,2,4,8", show_default=True)
@click.option("--seconds", default=30.0, show_default=True, help="Of a block.")
@click.option("--rounds", default=2, show_default=True, help="Blocks of each server.")
@click.option("-n", "--n-predict", default=128, show_default=True)
@click.option("-t", "--threads", default=2, show_default=True)
@click.option("--per-category", default=40, show_default=True)
def main(
    model: Path,
    streams: str,
    seconds: float,
    rounds: int,
    n_predict: int,
    threads: int,
    per_category: int,
) -> None:
    """Compare edgecs serve with llama.cpp's server."""
    counts = [int(count) for count in streams.split(",")]
    chosen = suite(["spec-bench", "humaneval"], per_category=per_category).prompts
    prompts = [prompt.text for prompt in chosen if len(prompt.text) < _LONGEST]
    sizes = model, max(counts), _CONTEXT, threads
    peers = user_cache_path("edgecs") / "peers"
    blocks: list[Block] = []
    with ExitStack() as closing:
        servers = {
            "edgecs": closing.enter_context(Edgecs(*sizes).running()),
            "xllamacpp": closing.enter_context(Xllamacpp(*sizes, peers).running()),
        }
        for server in servers.values():  # compiles templates, fills caches
            load(server.port, prompts, 1, 8, 1.0)
        for block in _blocks(servers, prompts, counts, seconds, rounds, n_predict):
            click.echo(json.dumps(_stated(block)), err=True)
            blocks.append(block)
    summary = [_summary(blocks, count) for count in counts]
    print("\n".join(aligned(_table(summary))))
    about = {"model": model.stem, "cpu": cpu_name(), "prompts": len(prompts)}
    options = {"n_predict": n_predict, "threads": threads, "slots": max(counts)}
    stated = [_stated(block) for block in blocks]
    print(json.dumps({**about, **options, "summary": summary, "blocks": stated}))


class Block(NamedTuple):
    """What the clients of one server saw in a block."""

    server: str
    streams: int
    answers: list[Stream]
    seconds: float
    mib: int  # resident memory of the server afterwards


def _blocks(
    servers: dict[str, Running],
    prompts: Sequence[str],
    counts: Sequence[int],
    seconds: float,
    rounds: int,
    most: int,
) -> Iterator[Block]:
    for count in counts:
        for i in range(rounds):
            # A B B A: a drift of the machine's speed hits both alike.
            for name in list(servers)[:: 1 if i % 2 == 0 else -1]:
                server = servers[name]
                answers, took = load(server.port, prompts, count, most, seconds)
                yield Block(name, count, answers, took, server.memory >> 20)


def _stated(block: Block) -> dict[str, Any]:
    errors = sorted({answer.error for answer in block.answers if answer.error})
    head = {"server": block.server, "streams": block.streams, "errors": errors}
    return {**head, **_figures([block]), "mib": block.mib}


def _figures(blocks: Sequence[Block]) -> dict[str, float]:
    """Figures over some blocks: tokens per second, and milliseconds."""
    every = [answer for block in blocks for answer in block.answers]
    whole = [answer for answer in every if answer.error is None and answer.events]
    tokens = sum(answer.tokens for answer in whole)
    gaps = [gap for answer in whole for gap in answer.gaps]
    token_gaps = [gap for answer in whole for gap in answer.token_gaps]
    figures = {
        "answers": len(whole),
        "drafted": sum(answer.drafted for answer in whole),
        "goodput": tokens / sum(block.seconds for block in blocks),
        **_percentiles("first", [answer.to_first for answer in whole]),
        **_percentiles("gap", gaps),
        **_percentiles("token_gap", token_gaps),
        "gap_max": 1e3 * max(gaps, default=math.nan),
    }
    return {name: round(figure, 2) for name, figure in figures.items()}


def _percentiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {f"{name}_p50": math.nan, f"{name}_p99": math.nan}
    cuts = quantiles(seconds, n=100, method="inclusive")
    return {f"{name}_p50": 1e3 * cuts[49], f"{name}_p99": 1e3 * cuts[98]}


def _summary(blocks: Sequence[Block], count: int) -> dict[str, Any]:
    """The figures of both servers, and edgecs over xllamacpp."""
    figures = {
        name: _figures([b for b in blocks if (b.server, b.streams) == (name, count)])
        for name in ("edgecs", "xllamacpp")
    }
    ours, theirs = figures.values()
    ratio = {key: round(ours[key] / theirs[key], 3) for key in _SHOWN}
    return {"streams": count, **figures, "ratio": ratio}


def _table(summary: Sequence[dict[str, Any]]) -> list[list[str]]:
    lines = [["streams", "server", "tok/s", *(f"{name} ms" for name in _SHOWN[1:])]]
    for row in summary:
        for name in ("edgecs", "xllamacpp", "ratio"):
            cells = [f"{row[name][figure]:.2f}" for figure in _SHOWN]
            lines.append([str(row["streams"]), name, *cells])
    return lines


if __name__ == "__main__":
    main()
