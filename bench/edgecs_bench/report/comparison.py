"""Compares two results: what is faster, slower or different."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from edgecs_bench.run.result import Result, markdown_of
from edgecs_bench.run.statistics import geometric_mean


def differences(a: Result, b: Result) -> Iterator[str]:
    """Differences that make two results incomparable or should be known."""
    for name, of in (
        ("machine", lambda r: f"{r['machine']['processor']} ({r['machine']['id']})"),
        ("model", lambda r: f"{r['model']['name']} ({r['model']['fingerprint'][:8]})"),
        ("prompts", lambda r: f"{r['suite']['prompts']} ({r['suite']['sha256'][:8]})"),
        ("llama-cpp-python", lambda r: r["build"]["llama_cpp_python"]),
        ("edgecs", lambda r: r["edgecs"]),
    ):
        if of(a) != of(b):
            yield f"other {name}: {of(a)} and {of(b)}"
    names = sorted(a["options"].keys() | b["options"].keys())
    for name in names:
        one, other = a["options"].get(name), b["options"].get(name)
        if one != other:
            yield f"other {name}: {one} and {other}"


def compare(a: Result, b: Result) -> list[dict[str, Any]]:
    """Rows of both results: speeds, speed-ups, and whether their intervals overlap.

    ratio: tokens per second of B over those of A; meaningful only on one machine.
    """
    theirs = {_key(row): row for row in b["rows"]}
    found = []
    for row in a["rows"]:
        other = theirs.get(_key(row))
        if other is None:
            continue
        ratio = None
        if row["speed"] and other["speed"]:
            ratio = round(other["speed"] / row["speed"], 4)
        found.append(
            {
                "category": row["category"],
                "mode": row["mode"],
                "temperature": row["temperature"],
                "speed_a": row["speed"],
                "speed_b": other["speed"],
                "ratio": ratio,
                "speedup_a": row["speedup"],
                "speedup_b": other["speedup"],
                "intervals_meet": _meet(row["interval"], other["interval"]),
                "forks_a": row["forks"],
                "forks_b": other["forks"],
            }
        )
    return found


def _key(row: Mapping[str, Any]) -> tuple[str, str, float]:
    return row["category"], row["mode"], row["temperature"]


def _meet(a: list[float] | None, b: list[float] | None) -> bool | None:
    """Whether two intervals overlap; None: unknown."""
    if not a or not b:
        return None
    return a[0] <= b[1] and b[0] <= a[1]


def means(rows: list[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """Geometric mean of the ratios by mode and temperature."""
    found: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        if row["ratio"]:
            key = row["mode"], row["temperature"]
            found.setdefault(key, []).append(row["ratio"])
    return [
        (mode, temperature, mean)
        for (mode, temperature), values in found.items()
        if (mean := geometric_mean(values)) is not None
    ]


def show(a: Sequence[Result], b: Sequence[Result], *, as_json: bool) -> str:
    """Compares two results, or merged ones model by model, as text or JSON.

    Raises click.UsageError if they have no common row.
    """
    theirs = {result["model"]["name"]: result for result in b}
    parts = [
        (result, theirs[result["model"]["name"]])
        for result in a
        if result["model"]["name"] in theirs
    ]
    if not parts and len(a) == len(b) == 1:
        parts = [(a[0], b[0])]
    found = [(one, other, compare(one, other)) for one, other in parts]
    if not any(rows for *_, rows in found):
        raise click.UsageError(
            "the two have no category, mode and temperature in common"
        )
    if as_json:
        data = [
            {
                "model": one["model"]["name"],
                "differences": list(differences(one, other)),
                "rows": rows,
            }
            for one, other, rows in found
        ]
        return json.dumps({"compared": data}) + "\n"
    return "\n".join(_shown(one, other, rows) for one, other, rows in found)


def _shown(one: Result, other: Result, rows: list[dict[str, Any]]) -> str:
    lines = [f"{one['model']['name']}\n"]
    lines += [f"{difference}\n" for difference in differences(one, other)]
    lines.append(markdown_of([{n: _text(v) for n, v in row.items()} for row in rows]))
    for mode, temperature, mean in means(rows):
        lines.append(
            f"{mode}, temp {temperature:g}: B has {mean:.3f} x the speed of A\n"
        )
    return "".join(lines)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
