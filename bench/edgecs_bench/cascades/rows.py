"""The rows of a cascade sweep: each way summed up, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgecs_bench.cascades.ways import LARGE
from edgecs_bench.text_tables import markdown

Record = Mapping[str, Any]


def rows(answers: Sequence[Record], timed: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for every way and temperature.

    calls: of the target, for each token. agreement: share of the tokens that the target
    would have chosen itself. rejection: share of the verified tokens, up to the first
    rejected one of each round, that were rejected. passed, problems: of HumanEval.
    tokens_per_second: after the first token of each timed answer, of which there are
    `timed`. speed: over that of large.
    """
    groups, times = _by_way(answers), _by_way(timed)
    found = []
    for temperature, way in sorted({**groups, **times}, key=lambda key: key[0]):
        group = groups.get((temperature, way), [])
        run = times.get((temperature, way), [])
        rate, large = _rate(run), _rate(times.get((temperature, LARGE), []))
        tested = sum(a["accepted"] + a["rejected"] for a in group)
        tokens = sum(a["tokens"] for a in group)
        exams = [a["passed"] for a in group if a["passed"] is not None]
        same = sum(a["agreement"] * a["tokens"] for a in group)
        found.append(
            {
                "temperature": temperature,
                "way": way,
                "answers": len(group),
                "tokens": tokens,
                "calls": _share(sum(a["calls"] for a in group), tokens),
                "agreement": _share(same, tokens),
                "rejection": _share(sum(a["rejected"] for a in group), tested),
                "passed": sum(exams) if exams else None,
                "problems": len(exams),
                "timed": len(run),
                "tokens_per_second": rate and round(rate, 3),
                "speed": round(rate / large, 4) if rate and large else None,
            }
        )
    return found


def _by_way(answers: Sequence[Record]) -> dict[tuple[float, str], list[Record]]:
    groups: dict[tuple[float, str], list[Record]] = {}
    for answer in answers:
        groups.setdefault((answer["temperature"], answer["way"]), []).append(answer)
    return groups


def _rate(group: Sequence[Record]) -> float | None:
    """Tokens per second after the first one of each answer; None: too short."""
    tokens = sum(a["tokens"] - 1 for a in group)
    seconds = sum(a["decode_ms"] for a in group) / 1e3
    return tokens / seconds if tokens and seconds else None


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


def table(result: Mapping[str, Any]) -> str:
    """The rows as a Markdown table; a column without values is left out."""
    columns = {
        "T": [f"{row['temperature']:g}" for row in result["rows"]],
        "way": [row["way"] for row in result["rows"]],
        "answers": [str(row["answers"] or "-") for row in result["rows"]],
        "calls/token": [_shown(row["calls"], ".3f") for row in result["rows"]],
        "agreement": [_shown(row["agreement"], ".3f") for row in result["rows"]],
        "rejected": [_shown(row["rejection"], ".3f") for row in result["rows"]],
        "pass@1": [_exam(row) for row in result["rows"]],
        "tok/s": [_shown(row["tokens_per_second"], ".2f") for row in result["rows"]],
        "speed": [_shown(row["speed"], ".2f") for row in result["rows"]],
    }
    kept = {name: cells for name, cells in columns.items() if {*cells} != {"-"}}
    body = [[*cells] for cells in zip(*kept.values(), strict=True)]
    return markdown([[*kept], *body], padded=True)


def _exam(row: Record) -> str:
    return f"{row['passed']}/{row['problems']}" if row["problems"] else "-"


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
