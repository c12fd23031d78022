"""Tables of speculative cascades in the documentation, from `bench --cascade-sweep`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgecs_bench.cascades.dominance import Comparison, compare, quality
from edgecs_bench.text_tables import markdown

QUALITIES = {"passed": "pass@1", "agreement": "agreement"}
_PAIRS = (("v3", "opt"), ("opt", "chow"), ("v3", "chow"))

_ENOUGH = 30  # chosen: with fewer, one prompt moves pass@1 by more than 3 %

Result = Mapping[str, Any]


def read(file: Path) -> Result:
    """A result of a sweep."""
    found: Result = json.loads(file.read_text(encoding="utf-8"))
    return found


def by_temperature(result: Result) -> dict[float, list[dict[str, Any]]]:
    """The rows of each temperature that has answers."""
    found: dict[float, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        if row["answers"]:
            found.setdefault(row["temperature"], []).append(row)
    return found


def basis(file: Path) -> str:
    """What the numbers of a result rest on, as a sentence."""
    result, parts = read(file), []
    for temperature, rows in by_temperature(result).items():
        row = rows[0]
        of = f"{row['answers']} of {result['prompts']} prompts"
        parts.append(f"{of} at temperature {temperature:g}")
    timed = max((row["timed"] for row in result["rows"]), default=0)
    speeds = f"speeds on {timed} prompts" if timed else "speeds were not measured"
    return f"{' and '.join(parts) or 'no prompts'}; {speeds}"


def every_way(file: Path) -> str:
    """A row for each way, with the columns of each temperature."""
    result = read(file)
    groups = by_temperature(result)
    if not groups:
        return "No prompt is finished.\n"
    head, cells = ["way"], {name: [f"`{name}`"] for name in result["ways"]}
    for temperature, rows in groups.items():
        passed = any(row["problems"] for row in rows)
        timed = any(row["speed"] for row in rows)
        columns = ["calls", "agreement", "rejected"]
        columns += ["pass@1"] * passed + ["speed"] * timed
        head += [f"{name}, T {temperature:g}" for name in columns]
        for row in rows:
            cells[row["way"]] += [_cell(row, name) for name in columns]
    return markdown([head, *(row for row in cells.values() if len(row) == len(head))])


def _cell(row: Mapping[str, Any], column: str) -> str:
    if column == "pass@1":
        return f"{row['passed']}/{row['problems']}"
    key, form = {
        "calls": ("calls", ".3f"),
        "agreement": ("agreement", ".3f"),
        "rejected": ("rejection", ".3f"),
        "speed": ("speed", ".2f"),
    }[column]
    return "" if row[key] is None else format(row[key], form)


def dominance(files: Mapping[str, Path]) -> str:
    """Which rule is above which; files: results by the name of their prompts."""
    lines = [
        ["prompts", "T", "quality", "rules", "points", "above", "below", "mean gap"]
    ]
    verdicts = []
    for prompts, temperature, name, rows in _groups(files):
        for first, other in _PAIRS:
            found = compare(rows, first, other, name)
            if found is None:
                continue
            lines.append(
                [
                    prompts,
                    f"{temperature:g}",
                    QUALITIES[name],
                    f"{first} over {other}",
                    str(found.points),
                    str(found.above),
                    str(found.below),
                    f"{found.mean:+.3f}",
                ]
            )
            verdicts.append(((first, other), found))
    return markdown(lines) + "\n" + _verdict(verdicts) + _caution(files)


def _groups(
    files: Mapping[str, Path],
) -> Iterable[tuple[str, float, str, Sequence[Mapping[str, Any]]]]:
    for prompts, file in files.items():
        for temperature, rows in by_temperature(read(file)).items():
            for name in QUALITIES:
                if any(quality(row, name) is not None for row in rows):
                    yield prompts, temperature, name, rows


def _caution(files: Mapping[str, Path]) -> str:
    """A sentence where the prompts are too few for a verdict."""
    counts = [
        (rows[0]["answers"], f"{prompts}, T {temperature:g}")
        for prompts, file in files.items()
        for temperature, rows in by_temperature(read(file)).items()
    ]
    few = [f"{count} ({name})" for count, name in counts if count < _ENOUGH]
    if not few:
        return ""
    return (
        f"\n\nSome of this rests on fewer than {_ENOUGH} prompts: {', '.join(few)}. So "
        "few show no more than how the rules differ on them, and decide nothing."
    )


def _verdict(found: Sequence[tuple[tuple[str, str], Comparison]]) -> str:
    """A sentence for each pair of rules."""
    said = []
    for pair in _PAIRS:
        some = [one for rules, one in found if rules == pair]
        times = sum(one.dominates for one in some)
        first, other = pair
        if some:
            said.append(
                f"`{first}` dominates `{other}` in {times} of {len(some)} comparisons."
            )
    return "\n".join(said)
