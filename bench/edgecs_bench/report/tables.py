"""The tables of a result of `edgecs bench`, as cells of text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from edgecs_bench.report.charts import PLAIN

NOTHING = "-"

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of cells; the last cell of a short row spans the remaining columns.

    numbers: for every head, whether its cells are numbers.
    """

    name: str
    title: str
    note: str
    heads: Sequence[str]
    numbers: Sequence[bool]
    rows: Sequence[Sequence[str]]


class _Column(NamedTuple):
    head: str
    cell: Callable[[Fields], str]
    number: bool = True


def tables(result: Fields) -> list[Table]:
    """Every table that has rows."""
    made = (_modes, _rows, _tests, _passes, _failures, _forks)
    return [table for make in made if (table := make(result)).rows]


def overview(results: Sequence[Fields]) -> Table:
    """A summary with one row per result."""
    columns = (
        _Column("model", lambda one: one["model"]["name"], number=False),
        _Column("speed-up", lambda one: number(_main(one).get("geomean"))),
        _Column("90 %", lambda one: interval(_main(one).get("interval"))),
        _Column("worst", lambda one: _worst(_main(one))),
        _Column("end to end", lambda one: number(_main(one).get("end_to_end"))),
        _Column("identical", lambda one: _identical(rows_of(one, _main(one)))),
        _Column("plain, tok/s", lambda one: plain_speeds(one)),
        _Column("mode", lambda one: _main(one).get("mode", NOTHING), number=False),
        _Column("machine", lambda one: one["machine"]["processor"], number=False),
    )
    note = "For each result, the mode that its verdict describes."
    return _table("overview", "Overview", note, columns, results)


def chosen(result: Fields) -> Fields | None:
    """The entry of `overall` for the verdict: the last drafting mode of edgecs."""
    ours = [
        mode["name"]
        for mode in result["modes"]
        if mode["name"] != PLAIN and not {"version", "error"} & mode.keys()
    ]
    found = [one for one in result["overall"] if one["mode"] in ours and one["geomean"]]
    coldest = min((one["temperature"] for one in found), default=None)
    cold = [one for one in found if one["temperature"] == coldest]
    return max(cold, key=lambda one: ours.index(one["mode"]), default=None)


def rows_of(result: Fields, overall: Fields) -> list[Fields]:
    """The rows that an entry of `overall` summarises."""
    key = (overall.get("mode"), overall.get("temperature"))
    return [row for row in result["rows"] if (row["mode"], row["temperature"]) == key]


def plain_speeds(result: Fields) -> str:
    """Tokens per second of plain decoding, of the slowest and the fastest category."""
    rows = (row for row in result["rows"] if row["mode"] == PLAIN)
    speeds = [row["speed"] for row in rows if row["speed"]]
    return f"{min(speeds):.1f}-{max(speeds):.1f}" if speeds else NOTHING


def number(value: float | None, form: str = ".2f") -> str:
    """A number as text, or a dash for None."""
    return NOTHING if value is None else format(value, form)


def interval(ends: Sequence[float | None] | None) -> str:
    """An interval as text, or a dash; equal ends are those of a single answer."""
    known = ends and None not in ends and ends[0] != ends[-1]
    return "-".join(map(number, ends)) if ends and known else NOTHING


def _modes(result: Fields) -> Table:
    """Every mode with its results; a failed mode has a row with its error."""
    about = {mode["name"]: mode for mode in result["modes"]}
    columns = (
        _Column("mode", lambda one: one["mode"], number=False),
        _Column("temp.", lambda one: number(one["temperature"], "g")),
        _Column("speed-up", lambda one: number(one["geomean"])),
        _Column("90 %", lambda one: interval(one["interval"])),
        _Column("worst", _worst),
        _Column("end to end", lambda one: number(one["end_to_end"])),
        _Column("identical", lambda one: _identical(rows_of(result, one))),
        _Column("planner, µs", lambda one: number(one["planner_us"], ".0f")),
        _Column(
            "description", lambda one: _about(about.get(one["mode"])), number=False
        ),
    )
    table = _table(
        "modes",
        "Modes",
        "Geometric means over the categories; end to end includes the time to the "
        "first token.",
        columns,
        result["overall"],
    )
    told = {one["mode"] for one in result["overall"]}
    silent = [m for m in result["modes"] if "error" in m or m["name"] not in told]
    return replace(
        table,
        heads=table.heads or ["mode", "description"],
        numbers=table.numbers or [False, False],
        rows=[*table.rows, *([mode["name"], _outcome(mode)] for mode in silent)],
    )


def _rows(result: Fields) -> Table:
    tiers = {tier for row in result["rows"] for tier in row["tiers"]}
    columns = (
        _Column("category", lambda row: row["category"], number=False),
        _Column("mode", lambda row: row["mode"], number=False),
        _Column("temp.", lambda row: number(row["temperature"], "g")),
        _Column("speed-up", lambda row: number(row["speedup"])),
        _Column("90 %", lambda row: interval(row["interval"])),
        _Column("tok/s", lambda row: number(row["speed"], ".1f")),
        _Column("end to end", lambda row: number(row["end_to_end"])),
        _Column("TTFT, ms", lambda row: number(row["ttft_ms"], ".0f")),
        _Column("accepted / tested", _acceptance),
        _Column("mean length", lambda row: number(row["mean_accept_len"])),
        *(_Column(tier, partial(_tier, tier)) for tier in sorted(tiers)),
        _Column("forks / 1,000", lambda row: number(row["forks_per_1000"])),
        _Column("identical", lambda row: _identical([row])),
        _Column("looping", lambda row: number(row["looping"], ".0%")),
        _Column("no loops", lambda row: number(row["speedup_without_loops"])),
        _Column("J/token", lambda row: number(row.get("joules_per_token"))),
        _Column("prompts", lambda row: number(row["prompts"], ",")),
        _Column("tokens", lambda row: number(row["tokens"], ",")),
    )
    note = (
        "TTFT: median time to first token. Mean length: tokens per round, including "
        "the bonus token. Exactness tiers: shares of the tokens. No loops: the "
        "speed-up on prompts whose answers have no repetition loops."
    )
    return _table("rows", "Categories", note, columns, result["rows"])


def _tests(result: Fields) -> Table:
    """A table with the columns of llama-bench."""
    model, machine = result["model"], result["machine"]
    backend = ", ".join(machine["devices"]) or "CPU"
    columns = (
        _Column("model", lambda one: model["description"], number=False),
        _Column("size", lambda one: size(model["bytes"])),
        _Column("params", lambda one: parameters(model["parameters"])),
        _Column("backend", lambda one: backend, number=False),
        _Column("threads", lambda one: number(result["options"]["threads"], "")),
        _Column("test", _test_name),
        _Column("t/s", _mean),
    )
    note = "Prefill (pp) and decode (tg) without sampling, mean ± standard deviation."
    return _table("tests", "Prefill and decode", note, columns, result["tests"])


def _passes(result: Fields) -> Table:
    columns = (
        _Column("mode", lambda one: one["mode"], number=False),
        _Column("temp.", lambda one: number(one["temperature"], "g")),
        _Column("problems", lambda one: number(one["problems"], ",")),
        _Column("passed", lambda one: number(one["passed"], ",")),
        _Column("pass@1", lambda one: _share(one["passed"], one["problems"])),
    )
    note = "HumanEval problems that the first answer solves."
    rows = result.get("pass_at_1") or []
    return _table("passes", "pass@1", note, columns, rows)


def _failures(result: Fields) -> Table:
    columns = (
        _Column("problem", lambda one: one["problem"], number=False),
        _Column("mode", lambda one: one["mode"], number=False),
        _Column("temp.", lambda one: number(one["temperature"], "g")),
        _Column("reason", lambda one: one["reason"], number=False),
    )
    rows = [
        {**one, "problem": problem, "reason": reason}
        for one in result.get("pass_at_1") or []
        for problem, reason in one["failed"]
    ]
    return _table("failures", "Problems not solved", "", columns, rows)


def _forks(result: Fields) -> Table:
    columns = (
        _Column("category", lambda one: one["category"], number=False),
        _Column("prompt", lambda one: one["id"], number=False),
        _Column("mode", lambda one: one["mode"], number=False),
        _Column("temp.", lambda one: number(one["temperature"], "g")),
        _Column("repeat", lambda one: number(one["repeat"], "d")),
        _Column("at token", lambda one: number(one["fork"]["token"], ",")),
        _Column("width", lambda one: number(one["fork"].get("width"), "d")),
        _Column("of tokens", lambda one: number(one["tokens"], ",")),
    )
    note = "Every answer that differs from plain decoding, and where."
    rows = [answer for answer in result["answers"] if answer.get("fork")]
    return _table("forks", "Forks", note, columns, rows)


def parameters(count: int | None) -> str:
    """As llama-bench writes it.

    >>> parameters(1543714304), parameters(134515008)
    ('1.54 B', '134.52 M')
    """
    if count is None:
        return NOTHING
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def size(bytes_: int | None) -> str:
    """As llama-bench writes it."""
    return NOTHING if bytes_ is None else f"{bytes_ / 2**30:.2f} GiB"


def _table(
    name: str,
    title: str,
    note: str,
    columns: Sequence[_Column],
    rows: Iterable[Fields],
) -> Table:
    """Makes a table without its empty columns."""
    lines = [[column.cell(row) for column in columns] for row in rows]
    kept = [at for at in range(len(columns)) if any(r[at] != NOTHING for r in lines)]
    return Table(
        name,
        title,
        note,
        [columns[at].head for at in kept],
        [columns[at].number for at in kept],
        [[line[at] for at in kept] for line in lines],
    )


def _main(result: Fields) -> Fields:
    return chosen(result) or {}


def _about(mode: Fields | None) -> str:
    if mode is None:
        return NOTHING
    version = f" ({mode['version']})" if "version" in mode else ""
    return f"{mode['about']}{version}"


def _outcome(mode: Fields) -> str:
    """The outcome of a mode without numbers."""
    failed = f"failed: {mode['error']}" if "error" in mode else "nothing measured"
    return f"{failed} ({_about(mode)})"


def _worst(overall: Fields) -> str:
    worst = overall.get("worst")
    return f"{worst['category']} {number(worst['speedup'])}" if worst else NOTHING


def _identical(rows: Iterable[Fields]) -> str:
    """Identical answers, of all that were compared."""
    same, forks = identical(rows)
    return f"{same} of {same + forks}" if same + forks else NOTHING


def identical(rows: Iterable[Fields]) -> tuple[int, int]:
    """Answers identical to plain decoding, and answers that fork from it."""
    counts = [(row["identical"], row["forks"]) for row in rows]
    return sum(same for same, _ in counts), sum(forks for _, forks in counts)


def _acceptance(row: Fields) -> str:
    if row["accepted"] is None or row["tested"] is None:
        return NOTHING
    return f"{row['accepted']:,} / {row['tested']:,}"


def _tier(name: str, row: Fields) -> str:
    return number(row["tiers"].get(name), ".0%")


def _test_name(test: Fields) -> str:
    deep = test["n_depth"] and "@" not in test["test"]
    return f"{test['test']} @ d{test['n_depth']}" if deep else str(test["test"])


def _mean(test: Fields) -> str:
    return f"{number(test['avg_ts'])} ± {number(test['stddev_ts'])}"


def _share(part: int | None, whole: int | None) -> str:
    return f"{part / whole:.1%}" if part is not None and whole else NOTHING
