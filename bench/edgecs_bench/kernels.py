"""Compares edgecs's kernels with llama.cpp's: tables, and JSON at the end.

    python -m edgecs_bench.kernels -m MODEL.gguf

Milliseconds of target calls by width and depth: edgecs's kernels and llama.cpp's run in
turn in one process, each with its own weights. llama.cpp is loaded in several
configurations; at each depth the fastest one for a single token is compared. Other
calls of the same width precede each timed call, because llama.cpp rebuilds its graph
when the width changes; the cost of a rebuild is measured separately. The benchmark also
reports the widths with the bits of single tokens, the prefill speed, and the share of
the memory bandwidth that a token reaches. The memory speed varies as other programs use
it, so a ratio is the median of ratios of consecutive calls.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, get_args

import click

from edgecs.calibrate.probe import Scratch, bits, scratch, settling
from edgecs.core.context import Context
from edgecs.core.draft import score_one
from edgecs.costs.cost_model import SETTLED
from edgecs.engines.host import Others, cpu_name
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.load_options import KernelChoice, LoadOptions
from edgecs.runtime.loader import Loaded, load
from edgecs_bench.text_tables import aligned

WIDTHS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
DEPTHS = (64, 1500)
EXACT_DEPTHS = (64, 300, 700, 2000)
THREADS = (1, 2, 3, 4)  # numbers of threads for which the bits are compared
_OURS, _PROMPT, _READS = "edgecs", 512, 3  # tokens of the prefill test, and repeats
_USUAL = LoadOptions(n_ctx=2304, n_gpu_layers=0)
_LLAMA = replace(_USUAL, kernels="llama")
WAYS = {
    "llama.cpp": _LLAMA,
    "--no-repack": replace(_LLAMA, repack=False),
    "--flash-attn off": replace(_LLAMA, flash_attention="off"),
}
"""The configurations of llama.cpp; its best one for a model is among them."""
_MEMORY = 1 << 30  # bytes read to measure the bandwidth

Row = Mapping[int, Sequence[float]]
"""Milliseconds of calls by width, one for each repeat."""


@contextmanager
def targets(
    model: Path, kernels: KernelChoice, threads: int
) -> Iterator[tuple[Loaded, dict[str, LlamaLM]]]:
    """edgecs's target, and all targets; llama.cpp's share equal weights."""
    with ExitStack() as closing:

        def opened(options: LoadOptions) -> Loaded:
            return closing.enter_context(load(model, replace(options, threads=threads)))

        own = opened(replace(_USUAL, kernels=kernels))
        if own.model.kernels is None:
            raise click.ClickException(
                f"edgecs's kernels are not used: {own.no_kernels}"
            )
        repacked, mapped = (opened(WAYS[w]) for w in ("llama.cpp", "--no-repack"))
        off = replace(repacked.options, flash_attention="off")
        yield (
            own,
            {
                _OURS: own.target,
                "llama.cpp": repacked.target,
                "--no-repack": mapped.target,
                "--flash-attn off": closing.enter_context(repacked.with_options(off)),
            },
        )


def calls(
    every: Mapping[str, LlamaLM],
    depth: int,
    widths: Sequence[int],
    repeats: int,
    read: Callable[[], float],
) -> tuple[dict[str, Row], list[float]]:
    """Times calls at a depth in turn, and runs `read` after single tokens."""
    took: dict[str, dict[int, list[float]]] = {
        name: {width: [] for width in widths} for name in every
    }
    reads = list[float]()
    with ExitStack() as closing:
        cells = {
            name: closing.enter_context(Scratch(target, depth))
            for name, target in every.items()
        }
        for i in range(repeats):
            for width in widths:
                for name in list(cells) if i % 2 else reversed(list(cells)):
                    for _ in range(SETTLED):
                        cells[name].rows(0, width)
                    began = time.perf_counter()
                    cells[name].rows(0, width)
                    seconds = time.perf_counter() - began
                    took[name][width].append(seconds * 1e3)
                    if name == _OURS and width == 1:
                        reads.append(read())
    return {**took}, reads


def best(every: Mapping[str, LlamaLM], depth: int, repeats: int) -> str:
    """llama.cpp's fastest configuration for a single token."""
    theirs = {way: every[way] for way in WAYS}
    found, _ = calls(theirs, depth, [1], repeats, float)
    return min(WAYS, key=lambda way: median(found[way][1]))


def reader(own: Loaded) -> Callable[[], float]:
    """Measures the memory bandwidth of the same threads, in bytes per second."""
    kernels, threads = own.model.kernels, own.target.threads
    assert kernels
    return lambda: kernels.bandwidth(_MEMORY, threads, 1)


def identical(own: Loaded, depth: int) -> list[int]:
    """Widths with the bits of single tokens, for every number of threads."""
    widths, rows = set(WIDTHS[1:]), set[bytes]()
    for threads in THREADS:
        with own.with_options(replace(own.options, threads=threads)) as target:
            found, _ = bits(target, depth, sorted(WIDTHS[1:]))
            widths &= found.same
            context = Context(scratch(target.vocab_size, depth))
            rows.add(score_one(target, context).logits.tobytes())
    return sorted(widths) if len(rows) == 1 else []


def reading(every: Mapping[str, LlamaLM]) -> dict[str, float]:
    """Prefill speed in tokens per second, medians, measured in turn."""
    took: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(_READS):
        for name, target in every.items():
            context = Context(scratch(target.vocab_size, _PROMPT))
            target.reset()
            began = time.perf_counter()
            score_one(target, context)
            took[name].append(_PROMPT / (time.perf_counter() - began))
    return {name: round(median(rates), 1) for name, rates in took.items()}


def over(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of ratios of consecutive calls."""
    return round(median(a / b for a, b in zip(above, below, strict=True)), 3)


def ratios(row: Row) -> dict[int, float]:
    """Times of calls relative to a single token."""
    return {width: over(took, row[1]) for width, took in row.items()}


def bandwidth(
    own: Loaded, took: Sequence[float], reads: Sequence[float]
) -> dict[str, float]:
    """GB per second of the memory and of a token, and the share.

    took: milliseconds of single tokens. reads: bytes per second, one after each token.
    """
    assert own.model.packed
    size = own.model.packed.size
    tokens, memory = [size / ms / 1e6 for ms in took], [read / 1e9 for read in reads]
    return {
        "memory": round(median(memory), 2),
        "token": round(median(tokens), 2),
        "share": over(tokens, memory),
    }


def show(depth: int, found: Mapping[str, Row]) -> None:
    """Prints the table of one depth."""
    print(f"\nms of a call after {depth} tokens")
    lines: list[Sequence[object]] = [["", *WIDTHS]]
    for name, row in found.items():
        lines.append([name, *(f"{median(ms):.2f}" for ms in row.values())])
    for name, row in found.items():
        shares = ratios(row).values()
        lines.append([f"{name}, ratio", *(f"{share:.2f}" for share in shares)])
    print("\n".join(aligned(lines)))


_SETS = [kind for kind in get_args(KernelChoice) if kind not in ("auto", "llama")]


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option("-t", "--threads", default=0, help="0: one per core.")
@click.option(
    "-r", "--repeats", default=7, show_default=True, help="Timed calls of each kind."
)
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
        tables, shares = dict[int, dict[str, Row]](), dict[int, dict[str, float]]()
        chosen = dict[int, str]()
        for depth in DEPTHS:
            chosen[depth] = best(every, depth, repeats)
            two = {name: every[name] for name in (_OURS, chosen[depth])}
            found, reads = calls(two, depth, WIDTHS, repeats, reader(own))
            tables[depth] = found
            shares[depth] = bandwidth(own, found[_OURS][1], reads)
            show(depth, found)
            print(f"GB a second: {shares[depth]}")
        read = reading(every)
        print("\ntokens of a prompt a second")
        print("  ".join(f"{name} {rate}" for name, rate in read.items()))
        exact = {depth: identical(own, depth) for depth in EXACT_DEPTHS}
        print("\nwidths with the bits of single tokens, 1 to 4 threads")
        for depth, widths in exact.items():
            print(f"after {depth} tokens: {' '.join(map(str, widths)) or 'none'}")
        change = settling(own.target, DEPTHS[0], 4, repeats) * 1e3
        result = _result(own, chosen, tables, read, exact, shares, change, others)
        print(json.dumps(result))


def _result(
    own: Loaded,
    chosen: Mapping[int, str],
    tables: Mapping[int, Mapping[str, Row]],
    read: Mapping[str, float],
    exact: Mapping[int, Sequence[int]],
    shares: Mapping[int, Mapping[str, float]],
    change: float,
    others: Others,
) -> dict[str, Any]:
    return {
        "model": own.model.path.stem,
        "cpu": cpu_name(),
        "threads": own.target.threads,
        "kernels": own.options.kernels,
        "plain_over_llama": {
            depth: over(found[chosen[depth]][1], found[_OURS][1])
            for depth, found in tables.items()
        },
        "ratio": {depth: ratios(found[_OURS]) for depth, found in tables.items()},
        "llama_ratio": {
            depth: ratios(found[chosen[depth]]) for depth, found in tables.items()
        },
        "identical_widths": exact,
        "bandwidth": shares,
        "prompt_over_llama": round(read[_OURS] / max(read[way] for way in WAYS), 3),
        "width_change_ms": round(change, 3),
        "prompt_tokens_s": read,
        "ms": {
            depth: {
                name: {width: round(median(ms), 3) for width, ms in row.items()}
                for name, row in found.items()
            }
            for depth, found in tables.items()
        },
        "llama_best": chosen,
        "others": round(others.share, 3),
    }


if __name__ == "__main__":
    main()
