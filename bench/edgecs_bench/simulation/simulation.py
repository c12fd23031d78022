"""Replays recorded answers with the call times of other hardware, chain by chain.

The planner and the cascades are the real ones; a clock advances by the times of their
calls. All chains answer the same prompts. The tuning half of the answers of every
recording is replayed first and not reported, so the planner has learned what it would
have learned in use; if nothing is left to report, all answers are reported. To compare
with a measurement, all answers are replayed and reported, because the planner of a
bench starts without a profile.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby
from operator import itemgetter
from statistics import median
from typing import Any, NamedTuple

from edgecs.errors import ConfigError
from edgecs_bench.hardware import catalogue
from edgecs_bench.hardware.curves import Steps
from edgecs_bench.hardware.machines import Hardware, Size, Target
from edgecs_bench.run.modes import PLANNER
from edgecs_bench.run.result import FORMAT as BENCH
from edgecs_bench.simulation.chains import ALL, MAG, PLAIN, Chain
from edgecs_bench.simulation.traces import Recording, Trace, for_tuning

NEAR = 0.05  # relative error of a good prediction
ASSUMPTIONS = (
    "every target accepts as often as the recorded one did",
    "the cost of depth counts as far as it was measured",
    "prefill is not timed, except that of drafters",
)


class Tally(NamedTuple):
    """The times of answers after their first tokens."""

    answers: int = 0
    tokens: int = 0
    rounds: int = 0
    drafted: int = 0  # rounds
    ms: float = 0.0

    def plus(self, other: Tally) -> Tally:
        """Both together."""
        return Tally(
            self.answers + other.answers,
            self.tokens + other.tokens,
            self.rounds + other.rounds,
            self.drafted + other.drafted,
            self.ms + other.ms,
        )

    def over(self, plain: Tally) -> dict[str, Any]:
        """The fields of a report; plain: the same answers without drafts."""
        return {
            "answers": self.answers,
            "speedup": round(plain.ms / self.ms, 4),
            "mean_accept_len": round(self.tokens / self.rounds, 4),
            "tokens_per_second": round(1e3 * self.tokens / self.ms, 4),
            "drafted": round(self.drafted / self.rounds, 4),
        }


Tallies = dict[str, Tally]
"""By category."""

Prompt = str
"""Its id."""


def choose(
    recordings: Sequence[Recording],
    chains: Sequence[Chain],
    limit: int | None,
    only: Container[Prompt] | None = None,
) -> list[Recording]:
    """The recordings that all chains can replay, with `limit` answers each.

    only: the prompts to replay; None: all. Raises ConfigError if there are none.
    """
    if any(chain.neural for chain in chains):
        recordings = [one for one in recordings if one.drafters]
        if not recordings:
            raise ConfigError("the traces have no drafter: leave out chains with one")
    chosen = []
    for one in recordings:
        said = (trace for trace in one.traces if len(trace.output) > 1)
        if only is not None:
            said = (trace for trace in said if trace.id in only)
        if traces := tuple(said)[:limit]:
            chosen.append(replace(one, traces=traces))
    if not chosen and only is not None:
        raise ConfigError(
            "the traces have none of the prompts that were measured: record their "
            "answers with python -m edgecs_bench.record"
        )
    if not chosen:
        raise ConfigError("the traces have no answer of two tokens or more")
    return chosen


def halves(recording: Recording) -> tuple[list[Trace], list[Trace]]:
    """Answers to learn from, and those to report."""
    learnt = [trace for trace in recording.traces if for_tuning(trace)]
    rest = [trace for trace in recording.traces if not for_tuning(trace)]
    return (learnt, rest) if rest else ([], learnt)


def play(
    chain: Chain,
    recording: Recording,
    aim: Target,
    steps: Mapping[str, Steps],
    *,
    learns: bool = True,
    tuned: bool = False,
) -> Tallies:
    """One chain over one recording.

    learns: one half is replayed first and not reported; otherwise all is reported.
    tuned: the planner knows from the start how often drafters are right.
    """
    player = chain.player(recording.drafters, aim.curve, steps)
    learnt, reported = halves(recording) if learns else ([], recording.traces)
    for neural in player.planner.neural if tuned else ():
        neural.start_from(right_share(learnt or reported, neural.name))
    for trace in learnt if chain.plans else ():
        player.play(trace)
    found: Tallies = {}
    for trace in reported:
        before = len(player.widths)
        ms = player.play(trace)
        widths = player.widths[before:]
        drafted = sum(width > 1 for width in widths)
        tally = Tally(1, len(trace.output) - 1, len(widths), drafted, ms)
        found[trace.category] = found.get(trace.category, Tally()).plus(tally)
    return found


def right_share(traces: Sequence[Trace], name: str) -> float:
    """The share of positions at which a drafter's first token is the target's.

    As `edgecs tune` measures it.
    """
    right = [
        said[:1] == [token]
        for trace in traces
        for said, token in zip(trace.proposals[name].tokens, trace.output, strict=False)
    ]
    return sum(right) / len(right) if right else 0.0


def merged(parts: Iterable[Tallies]) -> Tallies:
    """Adds tallies of the same categories."""
    name = itemgetter(0)
    every = sorted((item for part in parts for item in part.items()), key=name)
    return {
        category: reduce(Tally.plus, (tally for _, tally in group))
        for category, group in groupby(every, key=name)
    }


@dataclass(frozen=True)
class Simulation:
    """A simulation: recordings, chains, and optionally the size of drafters.

    learns, tuned: see `play`. beside: the machine of the drafters; None: the same.
    """

    recordings: Sequence[Recording]
    chains: Sequence[Chain]
    drafter: Size | None = None
    learns: bool = True
    tuned: bool = False
    beside: Hardware | None = None

    def reported(self, recording: Recording) -> int:
        """The number of reported answers of a recording."""
        said = halves(recording)[1] if self.learns else recording.traces
        return len(said)

    def rows(
        self, machine: Hardware, aim: Target, *, by_category: bool = False
    ) -> list[dict[str, Any]]:
        """One row for every chain on one target, and optionally for its categories."""
        plain = self._played(Chain(PLAIN), machine, aim)
        found = []
        for chain in self.chains:
            played = self._played(chain, machine, aim)
            for category in (None, *(plain if by_category else ())):
                found.append(
                    {
                        "hardware": machine.name,
                        "target": aim.model,
                        "chain": chain.label,
                        "category": category,  # None: all of them
                        **_of(played, category).over(_of(plain, category)),
                        "simulated": True,
                    }
                )
        return found

    def _played(self, chain: Chain, machine: Hardware, aim: Target) -> Tallies:
        return merged(
            play(
                chain,
                one,
                aim,
                self._steps(chain, one, machine, aim),
                learns=self.learns,
                tuned=self.tuned,
            )
            for one in self.recordings
        )

    def _steps(
        self, chain: Chain, recording: Recording, machine: Hardware, aim: Target
    ) -> dict[str, Steps]:
        names = recording.drafters if chain.neural else ()
        there = self.beside or machine
        return {name: there.drafter(name, aim, self.drafter).steps for name in names}


def _of(tallies: Tallies, category: str | None) -> Tally:
    if category is not None:
        return tallies[category]
    return reduce(Tally.plus, tallies.values())


class Measured(NamedTuple):
    """A machine where chains were measured, and their speed-ups."""

    machine: Hardware
    speedups: dict[str, float]  # by label
    prompts: frozenset[Prompt] | None = None  # that were answered; None: unknown


def against(fields: Any, name: str) -> Measured:
    """The measurement in the fields of a file: a result of `edgecs bench`, or

    {"cost_ms": {WIDTH: ms}, "overhead_ms": ms, "settling_ms": ms,
    "speedups": {CHAIN: measured}, "drafters", "depth" and "deep" as in a hardware
    profile}; fields that are optional there are optional here. Raises ConfigError, or
    what `hardware.load` reports.
    """
    fields, prompts = catalogue.members(fields, "the file"), None
    if fields.get("format") == BENCH:
        fields, prompts = _of_bench(fields)
    target = Target(
        "measured",
        catalogue.times(fields["cost_ms"]),
        catalogue.time(fields["overhead_ms"], "overhead_ms"),
        depth=(depth := int(catalogue.number(fields.get("depth", 0), "depth", 0))),
        settling_ms=catalogue.time(fields.get("settling_ms", 0), "settling_ms"),
        deep=catalogue.read_deep(fields.get("deep", []), depth),
    )
    drafters = tuple(map(catalogue.read_drafter, fields.get("drafters", ())))
    speedups = {
        Chain.parse(label).label: catalogue.number(value, f"speed-up of {label}")
        for label, value in catalogue.members(fields["speedups"], "speedups").items()
    }
    if not speedups:
        raise ValueError("speedups is empty")
    machine = Hardware(name, "", "measured", (target,), drafters)
    return Measured(machine, speedups, prompts)


def _of_bench(result: dict[str, Any]) -> tuple[dict[str, Any], frozenset[Prompt]]:
    """The measurement of a result of `edgecs bench`: greedy answers, by mode."""
    costs = catalogue.members(result["costs"], "costs")
    drafters = [str(one["name"]) for one in result["drafters"]]
    spent: dict[str, dict[Prompt, list[float]]] = {}
    for answer in result["answers"]:
        if not answer["temperature"] and answer["tokens"] > 1:
            prompt = str(answer["id"])  # a bench may group categories
            ms = catalogue.number(answer["decode_ms"], "decode_ms")
            spent.setdefault(answer["mode"], {}).setdefault(prompt, []).append(ms)
    labels = {mode: _label(mode, drafters) for mode in spent}
    labels = {mode: label for mode, label in labels.items() if label}
    if not labels or PLAIN not in spent:
        raise ValueError("no drafting mode besides plain decoding")
    shared = frozenset.intersection(
        *(frozenset(spent[mode]) for mode in (PLAIN, *labels))
    )
    total = {
        mode: sum(median(spent[mode][prompt]) for prompt in shared)
        for mode in (PLAIN, *labels)
    }
    if not shared:
        raise ValueError("no prompt was answered in all modes")
    known = catalogue.members(costs.get("drafters", {}), "drafters")
    return {
        "cost_ms": costs["ms"],
        "overhead_ms": costs["overhead_ms"],
        "settling_ms": costs.get("settling_ms", 0),
        "depth": costs["depth"],
        "deep": costs.get("deep", []),
        "drafters": [{"name": name, **one} for name, one in known.items()],
        "speedups": {labels[mode]: total[PLAIN] / total[mode] for mode in labels},
    }, shared


def _label(mode: str, drafters: Sequence[str]) -> str | None:
    """The chain of a bench mode; None: the mode is not a chain."""
    if mode == PLANNER:
        return ALL if drafters else MAG
    if mode.startswith("k:"):
        return mode.removeprefix("k:")
    who, _, count = mode.rpartition(":")
    if who == "mag":
        return mode
    return f"drafter:{count}" if drafters[:1] == [who] else None


def compared(
    rows: Iterable[Mapping[str, Any]], speedups: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Predicted and measured speed-ups, and their relative error."""
    return [
        {
            "chain": row["chain"],
            "predicted": row["speedup"],
            "measured": speedups[row["chain"]],
            "error": round(row["speedup"] / speedups[row["chain"]] - 1, 4),
            "simulated": True,
        }
        for row in rows
        if row["category"] is None
    ]
