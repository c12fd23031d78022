"""Call times on this machine: the cost curve, drafters' steps, and the anchor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import monotonic, perf_counter
from typing import Any

import click

from edgecs.calibrate.probe import curve, scratch, settling
from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.core.context import Context
from edgecs.core.draft import LanguageModel, score_one
from edgecs.costs.cost_model import WIDEST
from edgecs.runtime.loader import Loaded, LoadedDrafter
from edgecs_bench.hardware.catalogue import export, read_deep
from edgecs_bench.hardware.machines import Drafter, Target
from edgecs_bench.run.blocks import Done
from edgecs_bench.run.modes import PLAIN
from edgecs_bench.run.result import Result

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32)
_REVIEWS = (1, 2, 3, 4, 8, 16)  # widths of a drafter's calls that are timed
_DEPTH = 128  # tokens of context at which the cost curve is measured
_DEEPER, _DEEP_WIDTHS = (512, 1024), (1, 2, 4, 8, 16)
_SETTLES = 6  # width of the calls whose effect on the next calls is timed
_ANCHOR_SECONDS = 0.2

Say = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """What is measured. began: `monotonic` value from which the time counts."""

    loaded: Loaded
    drafters: Sequence[LoadedDrafter]
    speculation: SpeculationProfile
    say: Say = lambda text: None
    began: float = field(default_factory=monotonic)


def costs(subject: Subject, whole: bool) -> dict[str, Any]:
    """The cost curve at a typical depth of answers, or the part that is known."""
    target, speculation = subject.loaded.target, subject.speculation
    depth = min(_DEPTH, target.n_ctx // 2)
    if whole:
        subject.say(f"timing calls of 1 to {WIDEST} tokens, at {depth} tokens")
        seconds = curve(target, depth, WIDTHS, repeats=5)
        settles = settling(target, depth, _SETTLES, repeats=9)
        deep = _deep(target, depth)
    else:
        deep, settles = [], speculation.costs.settling
        times = speculation.costs.times(depth)
        seconds = {n: s for n, s in enumerate(times, 1) if math.isfinite(s)}
    same = speculation.classes.strict(depth).nonzero()[0] + 1
    drafters = {d.name: _steps(d) for d in subject.drafters} if whole else {}
    return {
        "depth": depth,
        "drafters": drafters,
        "ms": {str(n): round(1e3 * s, 4) for n, s in seconds.items()},
        "settling_ms": round(1e3 * settles, 4),
        "deep": deep,
        "same": [int(n) for n in same if n > 1],
    }


def _deep(target: LanguageModel, depth: int) -> list[dict[str, Any]]:
    """Milliseconds by width at larger depths, as far as the context goes."""
    found = []
    for further in _DEEPER:
        if depth < further < target.n_ctx - WIDEST:
            seconds = curve(target, further, _DEEP_WIDTHS, repeats=3)
            ms = {str(n): round(1e3 * s, 4) for n, s in seconds.items()}
            found.append({"depth": further, "ms": ms})
    return found


def _steps(drafter: LoadedDrafter) -> dict[str, Any]:
    """Milliseconds of a drafter's calls by width, and per token of a prompt."""
    model = drafter.model
    depth = min(_DEPTH, model.n_ctx // 2)
    seconds = curve(model, depth, _REVIEWS, repeats=5)
    began = perf_counter()
    score_one(model, Context(scratch(model.vocab_size, depth)))
    reading = (perf_counter() - began) / depth
    model.reset()
    return {
        "ms": {str(n): round(1e3 * s, 4) for n, s in seconds.items()},
        "reading_ms": round(1e3 * reading, 4),
    }


def anchor(subject: Subject) -> float:
    """Milliseconds of a call with one token, the median of a few calls."""
    target = subject.loaded.target
    depth = min(_DEPTH, target.n_ctx // 2)
    first = curve(target, depth, [1], repeats=3)[1]
    repeats = min(24, max(3, round(_ANCHOR_SECONDS / first)))
    return round(1e3 * curve(target, depth, [1], repeats=repeats)[1], 4)


def overhead(done: Sequence[Done]) -> float:
    """Milliseconds of a round of plain decoding outside the target call."""
    found = [
        (a.decode_ms - a.calling_ms) / a.rounds
        for one in done
        for a in one.answers
        if a.mode == PLAIN and a.rounds and a.calling_ms is not None
    ]
    return round(median(found), 4) if found else 0.0


def exported(result: Result) -> dict[str, Any]:
    """The hardware profile of a result, see `hardware`. Raises click.UsageError."""
    costs, model = result["costs"], result["model"]
    if not costs or len(costs["ms"]) < 2:
        raise click.UsageError("this run has no cost curve to export")
    target = Target(
        model["name"],
        _by_width(costs["ms"]),
        costs["overhead_ms"],
        parameters=model["parameters"],
        bytes=model["bytes"],
        depth=costs["depth"],
        settling_ms=costs.get("settling_ms", 0.0),
        deep=read_deep(costs.get("deep", []), costs["depth"]),
    )
    drafters = [
        Drafter(name, _by_width(one["ms"]), one["reading_ms"])
        for name, one in costs.get("drafters", {}).items()
    ]
    machine, build = result["machine"], result["build"]
    note = (
        f"{result['options']['threads']} threads, llama-cpp-python "
        f"{build['llama_cpp_python']}, {result['created']}"
    )
    return export(machine["processor"], [target], drafters, note=note)


def _by_width(ms: dict[str, float]) -> dict[int, float]:
    return {int(width): time for width, time in ms.items()}
