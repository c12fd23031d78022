"""What edgecs's kernels bring to a model: tables, and JSON at the end.

    python -m edgecs_bench.kernels -m MODEL.gguf

Milliseconds of target calls by width and depth: edgecs's kernels and llama.cpp's take
turns in one process, over weights of their own. llama.cpp is loaded in every way that
may be its best one; the fastest one for a single token counts, at each depth. A call is
timed after others of its width, as llama.cpp builds its graph anew when that changes;
what the change costs is told apart. Then: which widths give the bits of single tokens,
how fast a prompt is read, and what share of the memory's bandwidth a token reaches.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, get_args

import click

from edgecs.backends.llama_lm import LlamaLM
from edgecs.context import Context
from edgecs.costs import SETTLED
from edgecs.draft import NOTHING
from edgecs.load import Loaded, load
from edgecs.machine import Others, cpu_name
from edgecs.options import KernelChoice, LoadOptions
from edgecs.probe import Scratch, bits, scratch, settling

WIDTHS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
DEPTHS = (64, 1500)
EXACT_DEPTHS = (64, 300, 700, 2000)
THREADS = (1, 2, 3, 4)  # with which the bits are compared
_OURS, _PROMPT, _READS = "edgecs", 512, 5  # tokens that are read, and how often
_USUAL = LoadOptions(n_ctx=2304, n_gpu_layers=0)
_LLAMA = replace(_USUAL, kernels="llama")
WAYS = {
    "llama.cpp": _LLAMA,
    "--no-repack": replace(_LLAMA, repack=False),
    "--flash-attn off": replace(_LLAMA, flash_attention="off"),
}
"""How llama.cpp is loaded: its best way for a model is one of these."""
_MEMORY = 1 << 30  # bytes that are read to measure the bandwidth

Calls = dict[str, dict[int, float]]
"""Median milliseconds of calls by way and width."""


@contextmanager
def targets(
    model: Path, kernels: KernelChoice, threads: int
) -> Iterator[tuple[Loaded, dict[str, LlamaLM]]]:
    """Edgecs's, and all; llama.cpp's share weights that are laid out alike."""
    with ExitStack() as closing:

        def opened(options: LoadOptions) -> Loaded:
            return closing.enter_context(load(model, replace(options, threads=threads)))

        own = opened(replace(_USUAL, kernels=kernels))
        if own.model.kernels is None:
            raise click.ClickException(f"llama.cpp's kernels compute: {own.no_kernels}")
        repacked, mapped = (opened(WAYS[w]) for w in ("llama.cpp", "--no-repack"))
        off = replace(repacked.options, flash_attention="off")
        yield (
            own,
            {
                _OURS: own.target,
                "llama.cpp": repacked.target,
                "--no-repack": mapped.target,
                "--flash-attn off": closing.enter_context(repacked.otherwise(off)),
            },
        )


def calls(every: Mapping[str, LlamaLM], depth: int, repeats: int) -> Calls:
    """Times calls at a depth, the ways in turn."""
    took: dict[tuple[str, int], list[float]] = {}
    with ExitStack() as closing:
        cells = {
            name: closing.enter_context(Scratch(target, depth))
            for name, target in every.items()
        }
        for i in range(repeats):
            for width in WIDTHS:
                for name in list(cells) if i % 2 else reversed(list(cells)):
                    for _ in range(SETTLED):
                        cells[name].rows(0, width)
                    began = time.perf_counter()
                    cells[name].rows(0, width)
                    seconds = time.perf_counter() - began
                    took.setdefault((name, width), []).append(seconds * 1e3)
    return {
        name: {width: round(median(took[name, width]), 3) for width in WIDTHS}
        for name in every
    }


def identical(own: Loaded, depth: int) -> list[int]:
    """Widths with the bits of single tokens, for every number of threads."""
    widths, rows = set(WIDTHS[1:]), set[bytes]()
    for threads in THREADS:
        with own.otherwise(replace(own.options, threads=threads)) as target:
            found, _ = bits(target, depth, sorted(WIDTHS[1:]))
            widths &= found.same
            context = Context(scratch(target.vocab_size, depth))
            rows.add(target.score(context, NOTHING).logits.tobytes())
    return sorted(widths) if len(rows) == 1 else []


def reading(every: Mapping[str, LlamaLM]) -> dict[str, float]:
    """Tokens of a prompt that are read in a second, medians, the ways in turn."""
    took: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(_READS):
        for name, target in every.items():
            context = Context(scratch(target.vocab_size, _PROMPT))
            target.reset()
            began = time.perf_counter()
            target.score(context, NOTHING)
            took[name].append(_PROMPT / (time.perf_counter() - began))
    return {name: round(median(rates), 1) for name, rates in took.items()}


def best(found: Calls) -> str:
    """llama.cpp's fastest way for a single token."""
    return min(WAYS, key=lambda way: found[way][1])


def ratios(row: Mapping[int, float]) -> dict[int, float]:
    """Times of calls over that of a single token."""
    return {width: round(ms / row[1], 3) for width, ms in row.items()}


def bandwidth(own: Loaded, milliseconds: float) -> dict[str, float]:
    """GB a second that this memory gives, that a token takes, and the share."""
    kernels, packed = own.model.kernels, own.model.packed
    assert kernels
    assert packed
    memory = kernels.bandwidth(_MEMORY, own.target.threads) / 1e9
    token = packed.size / milliseconds / 1e6
    return {
        "memory": round(memory, 2),
        "token": round(token, 2),
        "share": round(token / memory, 3),
    }


def show(depth: int, found: Calls) -> None:
    """A table of one depth."""
    print(f"\nms of a call after {depth} tokens")
    print(f"{'':18}" + "".join(f"{width:8}" for width in WIDTHS))
    for name, row in found.items():
        print(f"{name:18}" + "".join(f"{ms:8.2f}" for ms in row.values()))
    for name in (_OURS, best(found)):
        shares = ratios(found[name]).values()
        print(f"{f'{name}, ratio':18}" + "".join(f"{share:8.2f}" for share in shares))


_SETS = [kind for kind in get_args(KernelChoice) if kind not in ("auto", "llama")]


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option("-t", "--threads", default=0, help="0: one for each core.")
@click.option("-r", "--repeats", default=7, show_default=True, help="Calls of a kind.")
@click.option(
    "--kernels",
    type=click.Choice(_SETS),
    default="own",
    show_default=True,
)
def main(model: Path, threads: int, repeats: int, kernels: KernelChoice) -> None:
    """Compare edgecs's kernels with llama.cpp's on one model."""
    others = Others()
    with targets(model, kernels, threads) as (own, every):
        print(f"{model.name}, {cpu_name()}, {own.target.threads} threads")
        tables = {depth: calls(every, depth, repeats) for depth in DEPTHS}
        for depth, found in tables.items():
            show(depth, found)
        read = reading(every)
        print("\ntokens of a prompt a second")
        print("  ".join(f"{name} {rate}" for name, rate in read.items()))
        exact = {depth: identical(own, depth) for depth in EXACT_DEPTHS}
        print("\nwidths with the bits of single tokens, 1 to 4 threads")
        for depth, widths in exact.items():
            print(f"after {depth:5} tokens: {' '.join(map(str, widths)) or 'none'}")
        memory = bandwidth(own, tables[DEPTHS[0]][_OURS][1])
        print(f"\nGB a second: {memory}")
        change = settling(own.target, DEPTHS[0], 4, repeats) * 1e3
        print(json.dumps(_result(own, tables, read, exact, memory, change, others)))


def _result(
    own: Loaded,
    tables: Mapping[int, Calls],
    read: Mapping[str, float],
    exact: Mapping[int, Sequence[int]],
    memory: Mapping[str, float],
    change: float,
    others: Others,
) -> dict[str, Any]:
    chosen = {depth: best(found) for depth, found in tables.items()}
    return {
        "model": own.model.path.stem,
        "cpu": cpu_name(),
        "threads": own.target.threads,
        "kernels": own.options.kernels,
        "plain_over_llama": {
            depth: round(found[chosen[depth]][1] / found[_OURS][1], 3)
            for depth, found in tables.items()
        },
        "ratio": {depth: ratios(found[_OURS]) for depth, found in tables.items()},
        "llama_ratio": {
            depth: ratios(found[chosen[depth]]) for depth, found in tables.items()
        },
        "identical_widths": exact,
        "bandwidth": memory,
        "prompt_over_llama": round(read[_OURS] / max(read[way] for way in WAYS), 3),
        "width_change_ms": round(change, 3),
        "prompt_tokens_s": read,
        "ms": tables,
        "llama_best": chosen,
        "others": round(others.share, 3),
    }


if __name__ == "__main__":
    main()
