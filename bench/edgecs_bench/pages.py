"""Tables in the documents, made from the raw numbers in bench/results/.

The last line of what `edgecs_bench.speed` or `edgecs audit --json` prints is a file
there; cog puts these tables where a document asks for them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edgecs_bench.speedups import readable

_LEFT_OUT = ("category", "geomean")  # of a detailed row: its name, and a second mean


def speed_overview(files: Iterable[Path]) -> str:
    """Speed-ups by model and category, a model a row, in the order of the files."""
    runs = [_read(file) for file in files]
    categories = list(dict.fromkeys(name for run in runs for name in run["speedup"]))
    rows = [
        [
            _name(run["model"]),
            _plain(run),
            *(_ratio(run["speedup"].get(name)) for name in categories),
            f"**{_ratio(run['geomean'])}**",
        ]
        for run in runs
    ]
    heads = [name.replace("_", " ") for name in categories]
    return _table(["model", "plain, tok/s", *heads, "geometric mean"], rows)


def speed_details(files: Iterable[Path]) -> str:
    """Every category of every model, a table for each model under its name."""
    parts = []
    for run in map(_read, files):
        rows = [readable(row) for row in run["categories"]]
        names = [name for name in rows[0] if name not in _LEFT_OUT]
        lines = [[row["category"], *(row[name] for name in names)] for row in rows]
        llama = run["llama_over_plain"]
        parts.append(
            f"## {_name(run['model'])}\n\n"
            f"{run['options']['target']['device']}, "
            f"{run['options']['target']['threads']} threads. Baseline: "
            f"{run['baseline']}; llama.cpp's own loop makes "
            f"{'an unknown share' if llama is None else format(llama, '.3f')} of plain "
            f"decoding's speed. The planner takes {run['planner_us']:.0f} µs a round "
            f"(median), other programs had {run['others']:.1%} of the processors' "
            f"time.\n\n" + _table(["category", *names], lines)
        )
    return "\n".join(parts)


def audits(files: Iterable[Path]) -> str:
    """What audits found: a row for each file, in their order."""
    rows = []
    for run in map(_read, files):
        forks: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        for one in run["runs"]:
            tokens.update(one["tokens_by_tier"])
            forks.update(fork["tier"] for fork in one["forks"])
        rates = (f"{t} {1000 * forks[t] / n:.2f}" for t, n in sorted(tokens.items()))
        answers = sum(one["answers"] for one in run["runs"])
        same = sum(one["identical"] for one in run["runs"])
        rows.append(
            [
                _name(run["model"]),
                run["exact"],
                run["options"]["type_k"],
                f"{run['sampling']['temperature']:g}",
                f"{same} of {answers}",
                f"{sum(tokens.values()):,}",
                ", ".join(rates),
                "**yes**" if run["strict_broken"] else "no",
            ]
        )
    heads = ["model", "asked for", "KV", "temp", "identical answers", "tokens"]
    return _table([*heads, "forks per 1,000 by tier", "strict broken"], rows)


def _read(file: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return fields


def _name(file: str) -> str:
    return file.removesuffix(".gguf")


def _plain(run: dict[str, Any]) -> str:
    """Plain decoding's tokens a second, the slowest and the fastest category."""
    speeds = [row["plain"] for row in run["categories"] if row["plain"]]
    return f"{min(speeds):.0f}-{max(speeds):.0f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [list(heads), ["---"] * len(heads), *(list(map(str, row)) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
