"""Cost of looking texts up in a memory, against other ways to keep them.

    python -m edgecs_bench.memory_lookups [--tokens 1000000,10000000] [--result FILE]

The texts are the Python sources that this interpreter has (its library and installed
packages), tokenised by a model's tokenizer. One file in 50 is left out. Half of the
queries are ends of texts in the files that were left out, half in those that are
stored. Every store is asked for the longest match of at most 32 tokens, and for 16
tokens that followed. The stores are those of `edgecs_bench.memory.lookup_stores`; LMDB
is left out if it is not installed.

All queries are asked in five passes, and of each the fastest time counts: CPU time of
the thread, so that other programs change it little. Pages of files are in the cache of
the system. The last line is JSON.
"""

from __future__ import annotations

import gc
import json
import platform
import sqlite3
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from edgecs.core.files import write_whole
from edgecs.drafters.copies import GRAM, LONGEST
from edgecs.engines.load_options import LoadOptions
from edgecs.memory.lookup import LOOKED_AT
from edgecs.runtime.folders import Folders
from edgecs.runtime.loader import load
from edgecs_bench.memory.lookup_stores import STORES, SuffixArray, Tokens
from edgecs_bench.text_tables import markdown

_UNSEEN = 50  # one file of so many is not stored
_QUERIES = 4000
_PASSES = 5


def sources() -> Iterator[Path]:
    """Python files of this interpreter, in an order that mixes packages."""
    paths = dict.fromkeys(sysconfig.get_paths()[n] for n in ("stdlib", "purelib"))
    files = [file for path in paths for file in Path(path).rglob("*.py")]
    unique = sorted({file.resolve() for file in files if file.is_file()})
    random = np.random.default_rng(0)
    for at in random.permutation(len(unique)):
        yield unique[at]


def read_texts(model: Path, most: int) -> tuple[list[Tokens], list[Tokens]]:
    """Files as tokens, `most` at least if there are so many; and those left out."""
    stored, unseen, total = list[Tokens](), list[Tokens](), 0
    with load(model, LoadOptions(n_ctx=64, kernels="llama")) as loaded:
        vocabulary = loaded.model.vocabulary
        for number, file in enumerate(sources()):
            text = file.read_text("utf-8", "replace")[: 1 << 20]
            tokens = vocabulary.encode(text, document=False, special=False)
            if tokens.size < 2 * LONGEST:
                continue
            if number % _UNSEEN == 0:
                unseen.append(tokens)
                continue
            stored.append(tokens)
            total += tokens.size
            if total >= most:
                break
    return stored, unseen


def queries(stored: Sequence[Tokens], unseen: Sequence[Tokens]) -> list[list[int]]:
    """Ends of texts, in turn of those that are stored and those that are not."""
    random, found = np.random.default_rng(1), list[list[int]]()
    for number in range(_QUERIES):
        texts = (stored, unseen)[number % 2]
        text = texts[int(random.integers(len(texts)))]
        at = int(random.integers(LONGEST, text.size))
        found.append(text[at - LONGEST : at].tolist())
    return found


def measured(
    name: str, texts: Sequence[Tokens], asked: Sequence[list[int]]
) -> tuple[dict[str, Any], list[int]]:
    """One store: its costs, and the lengths of its matches."""
    count = sum(text.size for text in texts)
    with tempfile.TemporaryDirectory() as folder:
        gc.collect()
        began, cpu = time.perf_counter(), time.process_time()
        store = STORES[name](Path(folder), texts)
        built, cpu = time.perf_counter() - began, time.process_time() - cpu
        spans = np.empty((_PASSES, len(asked)), dtype=np.int64)
        lengths = [store.match(end).length for end in asked]
        for row in spans:
            for number, end in enumerate(asked):
                start = time.thread_time_ns()
                store.match(end)
                row[number] = time.thread_time_ns() - start
        least = spans.min(axis=0)
        found = {
            "store": name,
            "tokens": count,
            "lookup_us": _microseconds(least),
            "stored_us": _microseconds(least[::2]),
            "unseen_us": _microseconds(least[1::2]),
            "build_seconds": round(built, 2),
            "build_cpu_seconds": round(cpu, 2),
            "bytes_per_token": round(store.size() / count, 1),
        }
        if isinstance(store, SuffixArray):
            found["segments"] = [one.words for one in store.segments]
    return found, lengths


def _microseconds(spans: NDArray[np.int64]) -> dict[str, float]:
    values = np.percentile(spans, [50, 99]) / 1000
    return {"median": round(values[0], 1), "p99": round(values[1], 1)}


@click.command()
@click.option("--tokens", "sizes", default="1000000,10000000", show_default=True)
@click.option("-m", "--model", default="smollm2-135m-instruct", show_default=True)
@click.option("--store", "names", multiple=True, type=click.Choice(list(STORES)))
@click.option("--result", type=click.Path(path_type=Path))
def main(sizes: str, model: str, names: tuple[str, ...], result: Path | None) -> None:
    """Measures lookups in stores of several sizes."""
    wanted = [int(size) for size in sizes.split(",")]
    stored, unseen = read_texts(Folders(offline=True).store.path(model), max(wanted))
    rows = list[dict[str, Any]]()
    about = {
        "format": "edgecs-memory-lookups",
        "cpu": _cpu(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "model": model,
        "queries": _QUERIES,
        "looked_at": LOOKED_AT,
        "rows": rows,
    }
    for size in wanted:
        texts, total = list[Tokens](), 0
        for text in stored:
            if total >= size:
                break
            texts.append(text)
            total += text.size
        asked = queries(texts, unseen)
        exact = list[int]()
        for name in names or STORES:
            try:
                row, lengths = measured(name, texts, asked)
            except ImportError:
                click.echo(f"{name} is not installed: left out", err=True)
                continue
            exact = exact or lengths
            pairs = zip(lengths, exact, strict=True)
            same = np.mean([a == b for a, b in pairs if b >= GRAM])
            row["longest"] = round(float(same), 4)
            rows.append(row)
            click.echo(_line(row))
            if result:
                write_whole(result, f"{json.dumps(about, indent=1)}\n".encode())
    click.echo(json.dumps(about))


def markdown_of(result: dict[str, Any]) -> str:
    """The table of a result, in Markdown."""
    heads = ("tokens", "store", "lookup, median", "p99", "built in", "bytes a token")
    rows = [
        (
            f"{row['tokens'] / 1e6:.1f} M",
            row["store"],
            f"{row['lookup_us']['median']:.0f} µs",
            f"{row['lookup_us']['p99']:.0f} µs",
            f"{row['build_cpu_seconds']:.0f} s",
            row["bytes_per_token"],
            f"{row['longest']:.0%}",
        )
        for row in result["rows"]
    ]
    return markdown([(*heads, "longest match found"), *rows])


def _line(row: dict[str, Any]) -> str:
    spans = row["lookup_us"]
    cells = (
        f"{row['tokens'] / 1e6:.1f} M tokens, {row['store']}",
        f"{spans['median']} us, p99 {spans['p99']} us",
        f"built in {row['build_cpu_seconds']} s",
        f"{row['bytes_per_token']} bytes a token",
        f"longest match in {row['longest']:.1%}",
    )
    return " · ".join(cells)


def _cpu() -> str:
    from edgecs.engines.host import cpu_name

    return cpu_name()


if __name__ == "__main__":
    main()
