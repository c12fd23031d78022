"""The report of `edgecs bench`: results of its schema as one HTML page.

The page needs no network and runs no script. Every text of a result is escaped: names
and answers come from models and other programs.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edgecs.errors import ConfigError
from edgecs_bench.report import canvas, figures
from edgecs_bench.report.charts import charts, cleaned, inline_svg
from edgecs_bench.report.tables import (
    NOTHING,
    Fields,
    Table,
    chosen,
    identical,
    interval,
    number,
    overview,
    parameters,
    plain_speeds,
    rows_of,
    size,
    tables,
)

FORMAT = "edgecs-bench/1"
DARK = {
    "ink": "#e3e7eb",
    "dim": "#9da7b2",
    "line": "#333b44",
    "paper": "#101418",
    "s0": "#7fb0f0",
    "s1": "#f0a35e",
    "s2": "#74c794",
    "s3": "#c6a0ea",
    "s4": "#5cc7d2",
    "s5": "#f2909a",
    "s6": "#d0bf5a",
    "s7": "#a9b4c0",
}
"""The colours of `canvas.LIGHT` on a dark page."""

_TARGET = "target"  # writes the tokens that were not drafted, which are not marked
_LOOKS = len(figures.SERIES)
_MACHINE = ("processor", "cores", "devices", "system", "power", "id")
_BUSY = 0.02  # share of the processors that other programs may use


class Drawn(NamedTuple):
    """A chart in the page."""

    name: str
    title: str
    caption: str
    svg: Markup


class Writer(NamedTuple):
    """A source of a sample's tokens, its style and its share."""

    name: str
    look: str  # of CSS
    share: str


class Section(NamedTuple):
    """One result."""

    id: str
    model: str
    summary: str
    verdict: Sequence[str]
    warnings: Sequence[str]
    facts: Mapping[str, Mapping[str, str]]
    charts: Sequence[Drawn]
    tables: Sequence[Table]
    samples: Sequence[Fields]
    writers: Mapping[str, Writer]


def render(results: Sequence[Mapping[str, Any]]) -> str:
    """One page for one or more results; equal results give equal pages.

    Without matplotlib it has a note instead of charts. Raises ConfigError.
    """
    for result in results:
        if result.get("format") != FORMAT:
            raise ConfigError(
                f"a report is made from {FORMAT}, not from {result.get('format')!r}: "
                "give a file that `edgecs bench` wrote"
            )
    clean = [cleaned(result) for result in results]
    drawable = canvas.is_installed()
    environment = Environment(
        loader=PackageLoader("edgecs_bench", "data/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        sections=[_section(at, one, drawable) for at, one in enumerate(clean, 1)],
        overview=overview(clean) if len(clean) > 1 else None,
        drawable=drawable,
        light=canvas.LIGHT,
        dark=DARK,
    )


def verdict(result: Fields) -> Iterator[str]:
    """The main findings in sentences."""
    best = chosen(result)
    if best is None:
        yield "No drafting mode has a speed here, so there is nothing to compare."
        return
    worst, several = best["worst"], {one["temperature"] for one in result["overall"]}
    warm = f" at temperature {best['temperature']:g}" if len(several) > 1 else ""
    where = (
        f", {number(worst['speedup'])} times in {worst['category']}, the worst category"
        if worst
        else ""
    )
    between = interval(best["interval"])
    sure = "" if between == NOTHING else f" (90 % interval {between})"
    yield (
        f"In mode “{best['mode']}”{warm} this model answers {best['geomean']:.2f} "
        f"times as fast as plain decoding here{sure}{where}."
    )
    same, forks = identical(rows_of(result, best))
    if forks:
        yield (
            f"{same} of {same + forks} answers are identical to plain decoding, token "
            f"by token; {forks} {'forks' if forks == 1 else 'fork'}."
        )
    elif same:
        yield f"All {same} answers are identical to plain decoding, token by token."


def warnings(result: Fields) -> Iterator[str]:
    """Warnings about the numbers."""
    best = chosen(result)
    ends = best and best["interval"]
    if ends and None not in ends and ends[0] <= 1 <= ends[1]:
        yield "The interval includes 1: no difference in speed is shown."
    if (result["others"] or 0) > _BUSY:
        yield (
            f"Other programs used {result['others']:.0%} of the processor time: these "
            "speeds are not a measurement of this model."
        )
    if drifted := {one["block"] for one in result["answers"] if one.get("drifted")}:
        yield (
            f"The speed of the machine changed during {len(drifted)} "
            f"block{'s' if len(drifted) > 1 else ''}."
        )
    if result["machine"]["power"] == "battery":
        yield "The machine ran on battery power."
    for mode in result["modes"]:
        if "error" in mode:
            yield f"“{mode['name']}” failed: {mode['error']}"


def _section(at: int, result: Fields, drawable: bool) -> Section:
    machine = result["machine"]
    cores = "" if machine["cores"] is None else f"{machine['cores']} cores"
    parts = (machine["processor"], cores, *machine["devices"], machine["system"])
    return Section(
        f"r{at}",
        result["model"]["name"],
        " · ".join(part for part in (*parts, result["created"]) if part),
        list(verdict(result)),
        list(warnings(result)),
        {name: _shown(block) for name, block in _facts(result).items()},
        [
            Drawn(
                one.name, one.title, one.caption, Markup(inline_svg(one, f"r{at}-{n}"))
            )
            for n, one in enumerate(charts(result) if drawable else ())
        ],
        tables(result),
        result["samples"],
        _writers(result["samples"]),
    )


def _facts(result: Fields) -> dict[str, dict[str, Any]]:
    """What was measured, where and how, by heading."""
    model, suite, machine = result["model"], result["suite"], result["machine"]
    return {
        "Model": {
            "name": model["name"],
            "description": model["description"],
            "parameters": parameters(model["parameters"]),
            "size": size(model["bytes"]),
            "fingerprint": model["fingerprint"],
            **{f"drafter {d['name']}": _drafter(d) for d in result["drafters"]},
        },
        "Machine": {
            **{name: machine[name] for name in _MACHINE},
            "memory": f"{number(machine['memory_gib'], '.1f')} GiB",
            "peak memory": f"{number(result['memory']['peak_rss_mib'], ',.0f')} MiB",
            "energy from": result["energy"]["source"],
            "other programs": number(result["others"], ".1%"),
            "plain decoding": f"{plain_speeds(result)} tok/s",
        },
        "Build": {"edgecs": result["edgecs"], **result["build"]},
        "Options": result["options"],
        "Run": {
            "date": result["created"],
            "prompts": f"{suite['prompts']} of {', '.join(suite['names'])}",
            "their sha256": suite["sha256"],
            "command": shlex.join(map(str, result["command"])),
        },
    }


def _drafter(fields: Fields) -> str:
    about, count = str(fields["about"]), fields["parameters"]
    return f"{about}, {parameters(count)} parameters" if count else about


def _shown(block: Fields) -> dict[str, str]:
    """Names and values as text; unknown ones are left out."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in block.items()
        if value not in (None, "", [])
    }


def _writers(samples: Sequence[Fields]) -> dict[str, Writer]:
    """All sources of tokens in the samples, the target first."""
    letters: dict[str, int] = {}
    for sample in samples:
        for text, name in sample["pieces"]:
            letters[name] = letters.get(name, 0) + len(text)
    names = sorted(letters, key=lambda name: name != _TARGET)
    drafters = [name for name in names if name != _TARGET]
    looks = {name: f"w{at % _LOOKS}" for at, name in enumerate(drafters)}
    total = sum(letters.values()) or 1
    return {
        name: Writer(name, looks.get(name, "w"), f"{letters[name] / total:.0%}")
        for name in names
    }
