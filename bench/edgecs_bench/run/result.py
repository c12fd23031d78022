"""Creates, writes, reads and shows results of `edgecs bench`.

The format is published in data/schema/edgecs-bench-1.json.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import click

from edgecs.core.files import write_whole
from edgecs.core.reading import read_given, reason
from edgecs_bench.run.answers import Answer
from edgecs_bench.run.blocks import Done
from edgecs_bench.run.statistics import overall, rows
from edgecs_bench.text_tables import markdown, with_heads

FORMAT = "edgecs-bench/1"
MERGED = "edgecs-bench-merged/1"
_LARGEST = 1 << 29  # bytes of a file that is read

Result = dict[str, Any]


def schema() -> dict[str, Any]:
    """The published JSON schema."""
    file = resources.files("edgecs_bench").joinpath("data/schema/edgecs-bench-1.json")
    fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return fields


def assemble(done: Sequence[Done], about: Mapping[str, Any]) -> Result:
    """Creates a result. about: all fields that do not follow from the blocks."""
    answers = [answer for one in done for answer in one.answers]
    anchors = [{"block": one.number, "ms": one.anchors[0]} for one in done]
    if done:
        anchors.append({"block": done[-1].number + 1, "ms": done[-1].anchors[1]})
    others = [one.others for one in done]
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "edgecs": metadata.version("edgecs"),
        **about,
        "anchors": anchors,
        "answers": [answer.to_json() for answer in answers],
        "samples": [one.sample for one in done if one.sample],
        "rows": rows(answers),
        "overall": overall(answers),
        "others": round(sum(others) / len(others), 4) if others else 0.0,
    }


def answers_of(result: Mapping[str, Any]) -> list[Answer]:
    """The answers of a result from `read`."""
    names = Answer.__dataclass_fields__
    return [
        Answer.from_json({n: v for n, v in fields.items() if n in names})
        for fields in result["answers"]
    ]


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Writes a result, see `write_text`."""
    write_text(path, json.dumps(result) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically.

    Raises click.ClickException.
    """
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise click.ClickException(
            f"{path} cannot be written: {error.strerror}"
        ) from error


def read(path: Path) -> list[Result]:
    """The results in a file, one or merged ones. Raises click.UsageError."""
    try:
        fields = json.loads(read_given(path, _LARGEST))
        found = fields["results"] if fields["format"] == MERGED else [fields]
        for result in found:
            _check(result)
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {reason(error)}") from error
    except (
        ValueError,
        RecursionError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        why = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise click.UsageError(
            f"{path} is not a result of edgecs bench ({why}): give a file that was "
            "written with --output"
        ) from error
    return list(found)


def _check(result: Any) -> None:
    """Raises KeyError, TypeError or ValueError for an invalid result."""
    if result["format"] != FORMAT:
        raise ValueError(f"its format is {result['format']!r}, not {FORMAT!r}")
    published = schema()
    for name in published["required"]:
        result[name]
    for name in ("row", "overall"):
        rows = result["rows" if name == "row" else name]
        for fields in rows:
            for field in published["$defs"][name]["required"]:
                fields[field]
    for block in ("machine", "build", "model", "options", "suite"):
        for name in published["properties"][block]["required"]:
            result[block][name]
    answers_of(result)


def merge(results: Iterable[Result]) -> dict[str, Any]:
    """Results of several runs, models or machines in one file."""
    return {"format": MERGED, "results": list(results)}


def _shown(value: Any, form: str = ".2f") -> str:
    if value is None:
        return "-"
    return format(value, form) if isinstance(value, float) else str(value)


def markdown_of(lines: Sequence[Mapping[str, str]]) -> str:
    """Rows with equal keys as a Markdown table that lines up on a terminal too."""
    return markdown(with_heads(lines), padded=True)


def tables(result: Mapping[str, Any]) -> str:
    """A result in Markdown: speeds, speed-ups and the verdict."""
    parts = []
    if result["tests"]:
        parts.append(markdown_of([_test(result, test) for test in result["tests"]]))
    if result["rows"]:
        parts.append(markdown_of(_speedups(result)))
    failed = [f"{m['name']}: {m['error']}" for m in result["modes"] if m.get("error")]
    parts.append("".join(f"{line}\n" for line in [*failed, *verdict(result)]))
    return "\n".join(parts)


def _speedups(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """A line for each category and temperature, a column for each mode."""
    lines: dict[tuple[float, str], dict[str, str]] = {}
    modes = [mode["name"] for mode in result["modes"] if mode["name"] != "plain"]
    for row in result["rows"]:
        temperature, category = row["temperature"], row["category"]
        line = lines.setdefault(
            (temperature, category),
            {"category": category, "temp": f"{temperature:g}", "plain tok/s": "-"}
            | dict.fromkeys(modes, "-"),
        )
        if row["mode"] == "plain":
            line["plain tok/s"] = _shown(row["speed"], ".1f")
        elif row["speedup"] is not None:
            forks = f"{row['forks']} forks" if row["forks"] else ""
            about = ", ".join(filter(None, (_span(row), forks)))
            more = f" ({about})" if about else ""
            line[row["mode"]] = f"{row['speedup']:.2f}{more}"
    return list(lines.values())


def _span(row: Mapping[str, Any]) -> str:
    """An interval as text; "" for that of a single answer, which has no width."""
    ends = row["interval"] or []
    return "-".join(f"{x:.2f}" for x in ends) if len({*ends}) > 1 else ""


def _test(result: Mapping[str, Any], test: Mapping[str, Any]) -> dict[str, str]:
    """A row with the columns of llama-bench."""
    model, options = result["model"], result["options"]
    return {
        "model": model["description"],
        "size": f"{model['bytes'] / (1 << 30):.2f} GiB",
        "params": f"{model['parameters'] / 1e9:.2f} B",
        "backend": "+".join(result["machine"]["devices"]) or "CPU",
        "threads": str(options["threads"]),
        "test": test["test"],
        "t/s": f"{test['avg_ts']:.2f} ± {test['stddev_ts']:.2f}",
    }


def verdict(result: Mapping[str, Any]) -> list[str]:
    """One line per mode, and warnings about the measurement."""
    lines = []
    for row in result["overall"]:
        if row["mode"] == "plain" or row["geomean"] is None:
            continue
        low, high = row["interval"]
        worst = row["worst"]
        between = f" ({low:.2f}-{high:.2f})" if low < high else ""  # one answer: none
        lines.append(
            f"{row['mode']}, temp {row['temperature']:g}: {row['geomean']:.2f} x plain "
            f"decoding{between}, worst {worst['speedup']:.2f} "
            f"({worst['category']}), end to end {row['end_to_end']:.2f}"
        )
    for row in result.get("pass_at_1") or []:
        lines.append(
            f"{row['mode']}, temp {row['temperature']:g}: pass@1 {row['passed']} of "
            f"{row['problems']}"
        )
    if result["others"] > 0.05:
        share = f"{result['others']:.0%}"
        lines.append(
            f"NOT A MEASUREMENT: other programs used {share} of the processor time"
        )
    drifted = {a["block"] for a in result["answers"] if a.get("drifted")}
    if drifted:
        lines.append(f"the machine's speed changed in {len(drifted)} blocks")
    return lines


def as_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the raw values; lists and objects as JSON."""
    if not lines:
        return ""
    file = io.StringIO()
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow(
            {
                name: json.dumps(value) if isinstance(value, list | dict) else value
                for name, value in line.items()
            }
        )
    return file.getvalue()


def rendered(result: Mapping[str, Any], form: str) -> str:
    """A result as md, csv, json or jsonl.

    csv and jsonl have a row for each category, mode and temperature; without answers,
    one for each test.
    """
    if form == "md":
        return tables(result)
    if form == "json":
        return json.dumps(result) + "\n"
    lines = result["rows"] or result["tests"]
    if form == "csv":
        return as_csv(lines)
    return "".join(json.dumps(line) + "\n" for line in lines)


def by_machine(results: Sequence[Result], form: str) -> str:
    """Results of several machines as md, csv or jsonl; rows name their machine.

    No number combines two machines.
    """
    if form == "md":
        parts = [f"## {_place(result)}\n\n{tables(result)}" for result in results]
        return "\n".join([*parts, overview(results)])
    lines = [
        {"machine": result["machine"]["id"], "processor": _place(result), **line}
        for result in results
        for line in result["rows"] or result["tests"]
    ]
    if form == "csv":
        return as_csv(lines)
    return "".join(json.dumps(line) + "\n" for line in lines)


def _place(result: Result) -> str:
    machine = result["machine"]
    devices = "".join(f", {name}" for name in machine["devices"])
    return f"{machine['processor']}, {machine['cores']} cores{devices}"


def overview(results: Sequence[Result]) -> str:
    """A table with one line for every mode of every result."""
    lines = [
        {
            "model": result["model"]["name"],
            "machine": result["machine"]["processor"],
            "threads": str(result["options"]["threads"]),
            "mode": row["mode"],
            "temp": f"{row['temperature']:g}",
            "geomean": _shown(row["geomean"]),
            "90 %": _span(row),
            "worst": _shown(row["worst"] and row["worst"]["speedup"]),
        }
        for result in results
        for row in result["overall"]
        if row["mode"] != "plain"
    ]
    return markdown_of(lines)
