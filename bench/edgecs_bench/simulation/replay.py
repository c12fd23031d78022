"""Replays the planner over recorded answers with cost curves, against an oracle.

    python -m edgecs_bench.simulation.replay
    python -m edgecs_bench.simulation.replay --traces FILE.jsonl.gz --curves FILE.json

The real planner runs on a clock that calls advance; every round includes the overhead
of edgecs. The oracle is a dynamic program over the same proposals that knows which
tokens are right. `plain` is one token per call. `static` is the best fixed draft length
in hindsight, for each curve, with Max-Gram's best minimum match.

Cold: every answer is the first one of a new planner, which has timed one call of each
width that is probed at load and has the prior acceptances. Warm: the planner has
learned from the tuning half of the answers; the other half is reported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import click
import numpy as np

from edgecs.calibrate.probe import QUICK
from edgecs.calibrate.speculation_profile import FIRST_WIDTHS
from edgecs.core.context import Context
from edgecs.core.draft import Rows, Verdict
from edgecs.costs.cost_model import WIDEST, CostModel
from edgecs.decoding.static_schedule import Outcome, Schedule
from edgecs.drafters.bigrams import Bigrams
from edgecs.drafters.maxgram import MaxGram
from edgecs.drafters.registry import branches_of, usual_sources
from edgecs.drafters.source import Source
from edgecs.planning.acceptance import Calibration
from edgecs.planning.ahead import Ahead
from edgecs.planning.planner import Planner
from edgecs.planning.trees import Trees
from edgecs_bench.hardware.curves import Curve, Steps
from edgecs_bench.report.summary import finish, table
from edgecs_bench.simulation.adversarial import KINDS
from edgecs_bench.simulation.replay_drafter import (
    HeardRecycling,
    Recorded,
    Said,
    SimulatedWorker,
    Watch,
)
from edgecs_bench.simulation.replay_options import (
    curves_of,
    recordings_of,
    replay_options,
)
from edgecs_bench.simulation.traces import Recording, Trace, for_tuning

_HOSTILE_ANSWERS = 12
_DEEP = 2048  # depth at which the cost of depth is timed at load
LENGTHS, MATCHES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15), (1, 2, 3, 5, 8)


class Played(NamedTuple):
    """The times of one answer, in milliseconds after its first token."""

    category: str
    plain: float
    oracle: float
    cold: float
    warm: float


class Player:
    """A planner for one target on one curve, with its clock."""

    def __init__(
        self,
        curve: Curve,
        drafters: Sequence[str],
        *,
        pace: float = 1.0,
        sources: Sequence[Source] = (),
        steps: Mapping[str, Steps] | None = None,
        leaves: int = 1,
        overlap: bool = False,
        watch: Watch | None = None,
    ) -> None:
        known = steps or {}
        self.curve = curve
        self.watch = watch or Watch()
        self.models = [
            Recorded(name, self.watch, pace, known.get(name)) for name in drafters
        ]
        calibration = Calibration()
        self.planner = Planner(
            CostModel(),
            calibration,
            sources,
            [model.named for model in self.models],
            clock=self.watch.now,
            trees=Trees(branches_of(sources), calibration, leaves),
            ahead=Ahead(worker=SimulatedWorker(self.watch), clock=self.watch.now)
            if overlap
            else None,
        )
        self.schedule: Schedule = self.planner  # can be replaced
        self.widths: list[int] = []  # one per round
        self.depths: list[int] = []  # tokens before each
        self.made = self.used = 0  # drafts made ahead, and those that were used
        self._goes_on = False
        self.thinking: list[float] = []  # real seconds of every decision
        for width in (1, *QUICK):
            self.planner.costs.observe(width, 0, curve.call(width, 0) / 1e3)
        if curve.deeper:
            deep = {n: curve.call(n, _DEEP) / 1e3 for n in (1, 4)}
            self.planner.costs.measured(_DEEP, deep)
        for neural, model in zip(self.planner.neural, self.models, strict=True):
            for width in FIRST_WIDTHS:
                neural.costs.observe(width, 0, model.seconds(width))

    def play(self, trace: Trace) -> float:
        """Milliseconds of an answer after its first token."""
        began = self.watch.now()
        everything = [*trace.prompt, *trace.output]
        for model in self.models:
            model.hear(trace)
        for source in self.planner.sources.all:
            if isinstance(source, HeardRecycling):
                source.hear(trace)
        context = Context([*trace.prompt, trace.output[0]])
        self.schedule.begin()
        self._goes_on = False  # whether the previous call was of this answer
        while len(context) < len(everything):
            self._round(context, everything)
        return (self.watch.now() - began) * 1e3

    def _round(self, context: Context, everything: list[int]) -> None:
        at, start = len(context), self.watch.now()
        begun = perf_counter()
        gathered = self.schedule.draft(context, Said(), len(everything) - at - 1)
        draft = gathered.draft
        self.used += gathered.ahead > 0
        thought = perf_counter() - begun
        drafted = self.watch.now()
        path = tuple(draft.path_along(everything[at:-1]))  # the last one is not drafted
        right = len(path)
        calling = self.curve.call(1 + len(draft), at) / 1e3
        if not len(draft) and self.widths and self.widths[-1] > 1 and self._goes_on:
            calling += self.curve.settling / 1e3
        self._goes_on = True
        room = len(everything) - at - len(draft) - 2
        goes_on = self.planner.go_on(context, draft, Said(), room)
        self.watch.pass_by(calling)
        self.made += bool(goes_on and self.planner.come_back())
        rows = Rows(np.empty((0, 0), dtype=np.float32), fed=1 + len(draft))
        verdict = Verdict(path, everything[at + right])
        outcome = Outcome(draft, rows, verdict, drafted - start, calling)
        begun = perf_counter()
        for source in self.planner.sources.all:
            source.observe(context, draft, rows, verdict)
        self.schedule.learn(context, outcome)
        self.thinking.append(thought + perf_counter() - begun)
        self.watch.pass_by(self.curve.overhead / 1e3)
        self.widths.append(1 + len(draft))
        self.depths.append(at)
        context.append(everything[at : at + right + 1])


def _agreed(tokens: Sequence[int], true: Sequence[int]) -> int:
    """The number of right tokens; the last true token is never drafted."""
    size = min(len(tokens), len(true) - 1)
    return next((i for i in range(size) if tokens[i] != true[i]), size)


class Known(NamedTuple):
    """The number of right tokens of every proposal, by output position."""

    copied: list[int]
    lengths: list[int]  # length of the match; 0: there is no proposal
    stated: list[list[int]]  # of every drafter


def know(trace: Trace) -> Known:
    """Compares every proposal with the answer."""
    mag, context = MaxGram(), Context(trace.prompt)
    copied, lengths = [], []
    for at, token in enumerate(trace.output):
        copy = mag.propose(context, WIDEST - 1)
        copied.append(_agreed(copy.tokens.tolist(), trace.output[at:]))
        lengths.append(mag.copy(()).length if len(copy) else 0)
        context.append((token,))
    stated = [
        [_agreed(tokens, trace.output[at:]) for at, tokens in enumerate(said.tokens)]
        for said in trace.proposals.values()
    ]
    return Known(copied, lengths, stated)


def oracle(known: Known, curve: Curve) -> float:
    """Minimum milliseconds for an answer, knowing which proposals are right.

    Every round takes Max-Gram's copy, or tokens of one drafter followed by a copy, of
    the best length, in a call of any width that fits. A drafter's first call reads two
    tokens, its own last one and the one that the target chose; its prefill is free.
    """
    first, step = float(Recorded.TIMES[1]), float(Recorded.TIMES[0])
    size = len(known.copied)
    times = curve.times + curve.overhead
    wide = np.minimum.accumulate(times[::-1])[::-1]
    best = np.zeros(size + 1)
    for at in range(size - 1, 0, -1):
        reach = min(known.copied[at], size - at - 1, WIDEST - 1)
        least = float((wide[: reach + 1] + best[at + 1 : at + reach + 2]).min())
        for right in known.stated:
            for n in range(1, min(right[at], size - at - 1, WIDEST - 1) + 1):
                more = min(known.copied[at + n], size - at - n - 1, WIDEST - 1 - n)
                here = wide[n : n + more + 1] + best[at + n + 1 : at + n + more + 2]
                least = min(least, first + (n - 1) * step + float(here.min()))
        best[at] = least
    return float(best[1])


def static(known: Known, curve: Curve, length: int, match: int) -> float:
    """Milliseconds with drafts of a fixed length after matches of at least `match`."""
    spent, at, size = 0.0, 1, len(known.copied)
    while at < size:
        drafted = min(length if known.lengths[at] >= match else 0, size - at - 1)
        spent += curve.round(1 + drafted)
        at += min(drafted, known.copied[at]) + 1
    return spent


def best_static(known: Sequence[Known], curve: Curve) -> float:
    """Milliseconds of all answers with the best fixed schedule in hindsight."""
    return min(
        sum(static(answer, curve, length, match) for answer in known)
        for length in LENGTHS
        for match in MATCHES
    )


def recycled() -> list[Source]:
    """The default sources of drafts that are trees."""
    return [MaxGram(), HeardRecycling(), Bigrams()]


def play_all(
    recordings: Sequence[Recording],
    curve: Curve,
    thinking: list[float],
    sources: Callable[[], Sequence[Source]] = usual_sources,
    leaves: int = 1,
) -> Iterator[tuple[Played, Known]]:
    """Replays every answer of the reported half."""
    for recording in recordings:
        said = [trace for trace in recording.traces if len(trace.output) > 1]
        warm = Player(curve, recording.drafters, sources=sources(), leaves=leaves)
        for trace in filter(for_tuning, said):
            warm.play(trace)
        for trace in said:
            if for_tuning(trace):
                continue
            known = know(trace)
            plain = (len(trace.output) - 1) * curve.round(1)
            drafters = recording.drafters
            fresh = Player(curve, drafters, sources=sources(), leaves=leaves)
            cold = fresh.play(trace)
            times = plain, oracle(known, curve), cold, warm.play(trace)
            yield Played(trace.category, *times), known
        thinking += warm.thinking


def hostile(recordings: Sequence[Recording], curve: Curve) -> dict[str, float]:
    """Plain over planned time with adversarial drafters only.

    Every answer is replayed with a new planner, and again with what it has learned; the
    worse of the two counts.
    """
    traces = [t for r in recordings for t in r.traces if not for_tuning(t)]
    traces = [t for t in traces if len(t.output) > 1][:_HOSTILE_ANSWERS]
    plain = sum((len(t.output) - 1) * curve.round(1) for t in traces)
    found = {}
    for kind in KINDS:
        cold = warm = 0.0
        known = Player(curve, [kind.name], pace=kind.pace)
        for trace in traces:
            spoilt = kind.spoil(trace)
            cold += Player(curve, [kind.name], pace=kind.pace).play(spoilt)
            warm += known.play(spoilt)
        found[kind.name] = round(plain / max(cold, warm), 4)
    return found


def summary(played: Sequence[Played], best: float) -> dict[str, Any]:
    """The results for one curve."""
    plain, least, cold, warm = (
        sum(column) for column in list(zip(*played, strict=True))[1:]
    )
    worst = {
        name: min(_by_category(played, field).items(), key=lambda item: item[1])
        for name, field in (("cold", "cold"), ("warm", "warm"))
    }
    return {
        "planner_over_plain": round(plain / warm, 3),
        "planner_over_oracle": round(least / warm, 3),
        "planner_over_best_static": round(best / warm, 3),
        "worst_category": round(worst["warm"][1], 3),
        "worst_category_name": worst["warm"][0],
        "cold_over_plain": round(plain / cold, 3),
        "cold_over_oracle": round(least / cold, 3),
        "cold_worst_category": round(worst["cold"][1], 3),
        "oracle_over_plain": round(plain / least, 3),
    }


def _by_category(played: Sequence[Played], field: str) -> dict[str, float]:
    names = dict.fromkeys(one.category for one in played)
    return {
        name: sum(one.plain for one in played if one.category == name)
        / sum(getattr(one, field) for one in played if one.category == name)
        for name in names
    }


def _shown(row: dict[str, Any]) -> dict[str, object]:
    """The row of the table, with the worst adversarial drafter."""
    return {**row, "hostile": min(row["hostile"].values())}


@click.command()
@replay_options
@click.option("--max-gram-alone", is_flag=True, help="Use no other source of drafts.")
@click.option("--recycling", is_flag=True, help="Use Token Recycling too.")
@click.option("--leaves", default=1, show_default=True, help="Most leaves of a draft.")
def main(
    files: tuple[Path, ...],
    curve_file: Path | None,
    names: tuple[str, ...],
    max_gram_alone: bool,
    recycling: bool,
    leaves: int,
) -> None:
    """Replay traces on cost curves."""
    recordings, curves = recordings_of(files), curves_of(curve_file, names)
    results, thinking = {}, list[float]()
    sources = recycled if recycling else usual_sources
    if max_gram_alone:
        sources = lambda: [MaxGram()]  # noqa: E731
    for curve in curves:
        played = list(play_all(recordings, curve, thinking, sources, leaves))
        if not played:
            raise click.UsageError("the traces have no answer in the reported half")
        answers, known = zip(*played, strict=True)
        results[curve.name] = summary(answers, best_static(known, curve))
        results[curve.name]["hostile"] = hostile(recordings, curve)
        click.echo(f"{curve.name}: {results[curve.name]}", err=True)
    table([{"curve": name, **_shown(row)} for name, row in results.items()])
    finish(
        {
            "answers": len(played),
            "planner_us_per_round": round(median(thinking) * 1e6, 1),
            "curves": results,
        }
    )


if __name__ == "__main__":
    main()
    sys.exit(0)
