"""The charts of a result of `edgecs bench`, as files and for a page.

`edgecs_bench.report.figures` draws them. Charts without data are left out.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecs_bench.report import figures
from edgecs_bench.report.canvas import FORMS, LIGHT, saved
from edgecs_bench.report.figures import Bar, Line, Pace
from edgecs_bench.report.svg import inline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAIN = "plain"

_WINDOW = 8  # rounds over which a speed is averaged
_PARTS = ("rows", "answers", "samples")  # parts of a result whose rows have a mode
_FEW = 10  # minimum tested tokens for a share
_DEEPEST = 16  # positions in a draft that are shown
_ODD = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_VARIABLES = {colour: f"var(--{name})" for name, colour in LIGHT.items()}


@dataclass(frozen=True)
class Chart:
    """One figure with its title and caption."""

    name: str  # of its file
    title: str
    caption: str
    make: Callable[[], Figure]


def charts(result: Mapping[str, Any]) -> list[Chart]:
    """Every chart that has data. Nothing is drawn yet."""
    clean = cleaned(result)
    parts = (_costs, _speedups, _positions, _sources, _paces, _rounds, _anchors)
    return [chart for part in parts for chart in part(clean)]


def save_charts(
    result: Mapping[str, Any], folder: Path, formats: Sequence[str] = FORMS
) -> list[Path]:
    """Writes every chart as a file of each format, with light colours."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for chart in charts(result):
        for form in formats:
            path = folder / f"{chart.name}.{form}"
            path.write_bytes(saved(chart.make, form))
            paths.append(path)
    return paths


def inline_svg(chart: Chart, prefix: str) -> str:
    """The chart as an element of a page, in the page's font and colours.

    The colours are CSS variables named as in `canvas.LIGHT`; ids begin with `prefix`.
    """
    label = f"{chart.title}. {chart.caption}"
    return inline(saved(chart.make, "svg"), _VARIABLES, prefix, label)


def cleaned(value: Any) -> Any:
    """Replaces characters that are invalid in a page, and NaN with None."""
    if isinstance(value, str):
        return _ODD.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {cleaned(key): cleaned(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(part) for part in value]
    return value


# --- the charts


def _costs(result: Mapping[str, Any]) -> Iterator[Chart]:
    curve = result["costs"] or {"ms": {}}
    found = {int(n): ms for n, ms in curve["ms"].items() if n.isdecimal() and ms}
    if not (1 in found and len(found) > 1):
        return
    relative = {n: found[n] / found[1] for n in sorted(found)}
    each = {n: value / n for n, value in relative.items()}
    best = min(each, key=lambda n: each[n])
    yield Chart(
        "costs",
        "Cost of a target call",
        f"After {curve['depth']} tokens of context; one token takes "
        f"{found[1]:.1f} ms. Below the dotted line a correct draft saves time. "
        f"Cheapest per token: {best}, which cost {relative[best]:.2f} times one.",
        partial(figures.costs, relative, curve["same"]),
    )


def _speedups(result: Mapping[str, Any]) -> Iterator[Chart]:
    """Categories with a bar per mode; with many modes, modes with bars per category."""
    modes = _series(result)
    group, colour = "category", "mode"
    if len(modes) > len(figures.SERIES):  # than there are distinct colours
        group, colour = colour, group
    rows = [r for r in result["rows"] if r["mode"] != PLAIN and r["speedup"]]
    rows.sort(key=lambda row: modes[row["mode"]])
    names = modes if colour == "mode" else dict.fromkeys(r[colour] for r in rows)
    series = {name: at for at, name in enumerate(names)}
    legend = {at: name for name, at in series.items()}
    for temperature in sorted({row["temperature"] for row in rows}):
        groups: dict[str, list[Bar]] = defaultdict(list)
        for row in rows:
            if row["temperature"] == temperature:
                ends = row["interval"] or [None]
                bar = Bar(
                    series[row[colour]],
                    row["speedup"],
                    None if None in ends else ends,
                    f"{row['speedup']:.2f}",
                )
                groups[row[group]].append(bar)
        yield Chart(
            f"speedups-t{temperature:g}",
            f"Speed-up at temperature {temperature:g}",
            "Decode speed relative to plain decoding, by category; whiskers: "
            "90 % interval. Left of 1 is slower. Bars are in the order of the legend.",
            partial(figures.bars, groups, legend, start=1, label="plain decoding = 1"),
        )


def _positions(result: Mapping[str, Any]) -> Iterator[Chart]:
    curves = []
    for mode, answers in _by_mode(result).items():
        sums: dict[int, list[int]] = defaultdict(lambda: [0, 0])
        for answer in answers:
            pairs = answer.get("by_position") or []
            for at, (tested, accepted) in enumerate(pairs[:_DEEPEST], 1):
                sums[at][0] += tested
                sums[at][1] += accepted
        points = {
            at: done / tried for at, (tried, done) in sums.items() if tried >= _FEW
        }
        if points:
            curves.append(Line(_series(result)[mode], mode, points))
    if curves:
        yield Chart(
            "positions",
            "Acceptance by position in the draft",
            "Share of the tested tokens that the target accepted, first token of a "
            f"draft on the left; positions with at least {_FEW} tested tokens.",
            partial(
                figures.lines, curves, across="position in the draft", up="accepted"
            ),
        )


def _sources(result: Mapping[str, Any]) -> Iterator[Chart]:
    series = _series(result)
    groups: dict[str, list[Bar]] = defaultdict(list)
    for mode, answers in _by_mode(result).items():
        tested: dict[str, int] = defaultdict(int)
        accepted: dict[str, int] = defaultdict(int)
        for answer in answers:
            for source, counts in (answer.get("by_source") or {}).items():
                tested[source] += counts["tested"]
                accepted[source] += counts["accepted"]
        for source, tried in tested.items():
            done = accepted[source]
            if tried:
                bar = Bar(series[mode], 100 * done / tried, None, f"{done:,}/{tried:,}")
                groups[source].append(bar)
    if groups:
        names = {index: name for name, index in series.items()}
        yield Chart(
            "sources",
            "Acceptance by source",
            "Tested tokens by drafter, and how many of them were accepted.",
            partial(
                figures.bars,
                groups,
                names,
                start=0,
                stop=100,
                label="% of tested tokens accepted",
            ),
        )


def _paces(result: Mapping[str, Any]) -> Iterator[Chart]:
    plain = {
        (row["category"], row["temperature"]): row["speed"]
        for row in result["rows"]
        if row["mode"] == PLAIN
    }
    found, series = [], _series(result)
    for sample in result["samples"]:
        key = (sample["category"], sample["temperature"])
        speeds, parked = pace(sample["rounds"])
        if speeds:
            label = f"{sample['category']}, {sample['mode']}"
            number = series.get(sample["mode"], 0)
            found.append(Pace(number, label, speeds, parked, plain.get(key)))
    if found:
        yield Chart(
            "paces",
            "Speed along an answer",
            f"Tokens per second over the last {_WINDOW} rounds, one answer per "
            "category. Parked: tokens were proposed but not tested. Dotted: plain "
            "decoding of all prompts of that category.",
            partial(figures.paces, found),
        )


def pace(
    rounds: Sequence[Mapping[str, Any]],
) -> tuple[dict[int, float], list[tuple[int, int]]]:
    """Tokens per second by the tokens so far, and parked spans of tokens.

    >>> rounds = [
    ...     {"at_ms": 100, "emitted": 1, "parked": True},
    ...     {"at_ms": 200, "emitted": 3, "parked": False},
    ... ]
    >>> pace(rounds)
    ({4: 20.0}, [(0, 1)])
    """
    rounds = [one for one in rounds if None not in (one["at_ms"], one["emitted"])]
    tokens = [0, *accumulate(one["emitted"] for one in rounds)]
    times = [0.0, *(one["at_ms"] for one in rounds)]
    speeds: dict[int, float] = {}
    parked: list[tuple[int, int]] = []
    width = min(_WINDOW, len(rounds))
    for end in range(max(1, width), len(tokens)):
        begin = end - width
        if times[end] > times[begin]:
            gained = tokens[end] - tokens[begin]
            speeds[tokens[end]] = 1e3 * gained / (times[end] - times[begin])
    for at, one in enumerate(rounds):
        if one["parked"]:
            joined = parked and parked[-1][1] == tokens[at]
            begin = parked.pop()[0] if joined else tokens[at]
            parked.append((begin, tokens[at + 1]))
    return speeds, parked


def _rounds(result: Mapping[str, Any]) -> Iterator[Chart]:
    rows = {}
    names = ("rounds", "decode_ms", "drafting_ms", "calling_ms")
    for mode, answers in _by_mode(result, plain=True).items():
        told = [[answer.get(name) for name in names] for answer in answers]
        known: list[list[Any]] = [numbers for numbers in told if None not in numbers]
        if rounds := sum(numbers[0] for numbers in known):
            whole, drafting, calling = (
                sum(numbers[at] for numbers in known) / rounds for at in (1, 2, 3)
            )
            rest = max(0.0, whole - drafting - calling)
            rows[mode] = [drafting, calling, rest]
    if rows:
        yield Chart(
            "rounds",
            "Time of a round by part",
            "Means over all answers. The rest is sampling, the planner and "
            "bookkeeping. A round yields as many tokens as the mean acceptance length.",
            partial(figures.stacks, rows, ("drafting", "target's call", "the rest")),
        )


def _anchors(result: Mapping[str, Any]) -> Iterator[Chart]:
    found = {one["block"]: one["ms"] for one in result["anchors"] if one["ms"]}
    drifted = sorted({a["block"] for a in result["answers"] if a.get("drifted")})
    if len(found) > 1:
        low, high = min(found.values()), max(found.values())
        yield Chart(
            "anchors",
            "Speed of the machine during the run",
            f"A call with one token, before every block and after the last one: "
            f"{low:.1f} to {high:.1f} ms, {high / low - 1:.0%} apart.",
            partial(figures.drift, found, drifted),
        )


def _series(result: Mapping[str, Any]) -> dict[str, int]:
    """A number for every mode except plain decoding, the same in every chart."""
    names = (row["mode"] for part in _PARTS for row in result[part])
    modes = dict.fromkeys([*(mode["name"] for mode in result["modes"]), *names])
    return {name: at for at, name in enumerate(m for m in modes if m != PLAIN)}


def _by_mode(
    result: Mapping[str, Any], *, plain: bool = False
) -> dict[str, list[Mapping[str, Any]]]:
    """The answers of every mode, in the order of the modes."""
    order = [*([PLAIN] if plain else []), *_series(result)]
    return {
        mode: [one for one in result["answers"] if one["mode"] == mode]
        for mode in order
    }
