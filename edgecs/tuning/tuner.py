"""Measure a target and its drafters carefully, and choose the drafters to use.

All comparisons are between adjacent runs: calls are timed against single tokens just
before and after them (`cost_sweep`), chains against plain decoding just before and
after (`comparison`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean
from time import perf_counter

import numpy as np

from edgecs.calibrate.probe import classify
from edgecs.calibrate.profile import Key, Profile
from edgecs.calibrate.speculation_profile import SpeculationProfile, busy
from edgecs.core.context import Tokens
from edgecs.core.draft import LanguageModel
from edgecs.costs.cost_model import WIDEST, CostModel
from edgecs.decoding.exactness import Classes
from edgecs.decoding.static_schedule import Clock
from edgecs.engines.host import Others
from edgecs.errors import ConfigError, EdgecsError
from edgecs.runtime.loader import LoadedDrafter
from edgecs.text.detokenizer import Tokenizer
from edgecs.tuning.comparison import (
    FEWEST,
    PLAIN,
    Chain,
    Comparison,
    Trial,
    chains,
    choose,
    compare,
    overlap_gains,
    overlap_pays,
    verdict,
)
from edgecs.tuning.cost_sweep import DEEPEST, REVIEWS, SHALLOW, Curve, places, sweep
from edgecs.tuning.estimate import Times, expected, needed
from edgecs.tuning.plan import (
    ANSWERING,
    ROOM,
    Effort,
    comparing,
    timing,
    timing_drafter,
)
from edgecs.tuning.runner import ChainDrafter, Stage, agreeing

# chosen: longer than the start of a program.
_SOON = 5.0  # seconds before load by other programs ends a tuning
# chosen: medians are robust to a quarter of outliers.
_DRIFTS = 0.25  # share of unsteady frames above which a curve is not trusted

Progress = Callable[[str], None]
"""Called with a message when a step begins."""


def _quiet(text: str) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class Candidate:
    """A measured drafter."""

    name: str
    fingerprint: str
    curve: Curve
    costs: CostModel
    right: float  # share of the target's tokens that it also chooses
    needs: float | None  # share that is required to pay, see `needed`

    @property
    def status(self) -> str:
        """The drafter's time, and the shares of right tokens it needs and has."""
        needs = "could not pay if all its tokens were right"
        if self.needs is not None:
            needs = f"needs {self.needs:.0%} of its tokens right"
        step = self.curve.seconds[1] * 1e3
        return f"{self.name}: {step:.1f} ms a token, {needs}, has {self.right:.0%}"


@dataclass(frozen=True)
class Tuned:
    """The result of a tuning."""

    curves: list[Curve]  # of the target, the shallowest first
    drafters: list[Candidate]
    compared: Comparison
    expected: dict[Chain, float]  # tokens per second, including plain decoding
    chosen: Trial

    @property
    def unsteady(self) -> bool:
        """Whether some numbers are unreliable because the machine drifted."""
        curves = [*self.curves, *(drafter.curve for drafter in self.drafters)]
        drifted = any(curve.unsure > _DRIFTS for curve in curves)
        return drifted or self.compared.unsure > 0

    def verdict(self, trial: Trial) -> str:
        """Why a chain was chosen, or why not."""
        return verdict(trial, self.chosen)

    @property
    def overlap(self) -> dict[str, float]:
        """By drafter, its speed if it goes on during calls over that if it waits."""
        return overlap_gains(self.compared.trials)

    def table(self) -> list[dict[str, object]]:
        """One row per chain, as JSON values."""
        plain = self.expected[PLAIN]
        return [
            {
                "chain": trial.chain.parts,
                "overlap": trial.chain.ahead,
                "expected": round(self.expected[trial.chain] / plain, 4),
                "measured": trial.speedup and round(trial.speedup, 4),
                "mean": round(trial.mean, 4),
                "by_kind": {k: round(r, 4) for k, r in trial.ratios.items()},
                "verdict": self.verdict(trial),
            }
            for trial in self.compared.trials
        ]


def tune(
    known: SpeculationProfile,
    tokenizer: Tokenizer,
    drafters: Sequence[LoadedDrafter],
    prompts: Mapping[str, Tokens],
    effort: Effort | None = None,
    *,
    tried: Sequence[Chain] | None = None,
    progress: Progress = _quiet,
    clock: Clock = perf_counter,
) -> Tuned:
    """Measure the target of `known` and the drafters, and compare chains of them.

    `known` is updated with the results. prompts: by kind of task. tried: chains to
    compare, None: all. Raises ConfigError if an answer does not fit the context,
    Cancelled, EdgecsError if other programs used too much CPU time.
    """
    effort, heed = effort or Effort(), _Heed()
    _check_room(known.target, prompts, effort.tokens)
    curves = _measure(known, effort, heed, progress, clock)
    measured = {d.name: _sweep_drafter(d, effort, progress, clock) for d in drafters}
    progress(ANSWERING)
    plain = Stage(known, tokenizer, tokens=effort.tokens, clock=clock)
    answers = {kind: plain.play(PLAIN, p).tokens for kind, p in prompts.items()}
    in_chains = [
        ChainDrafter(
            d.name,
            d.model,
            _costs([measured[d.name]]),
            _agreed(d, known.target, prompts, answers),
        )
        for d in drafters
    ]
    stage = Stage(known, tokenizer, in_chains, tokens=effort.tokens, clock=clock)
    telling = {k: p for k, p in prompts.items() if len(answers[k]) >= FEWEST}
    every = chains([*measured]) if tried is None else tried
    compared = compare(every, telling, stage.play, progress)
    heed.judge()
    known.calibration = stage.learnt()
    times = _times(known, curves[0])
    candidates = [
        Candidate(
            drafter.name,
            drafter.fingerprint,
            measured[drafter.name],
            other.costs,
            fmean(other.agreed) if other.agreed else 0.0,
            needed(times, measured[drafter.name].seconds[1]),
        )
        for drafter, other in zip(drafters, in_chains, strict=True)
    ]
    steps = {c.name: (c.curve.seconds[1], c.right) for c in candidates}
    promised = {
        chain: expected(
            times,
            chain.mag,
            [steps[name] for name in chain.drafters],
            ahead=chain.ahead,
        )
        for chain in (PLAIN, *(trial.chain for trial in compared.trials))
    }
    return Tuned(curves, candidates, compared, promised, choose(compared.trials))


def _agreed(
    drafter: LoadedDrafter,
    target: LanguageModel,
    prompts: Mapping[str, Tokens],
    answers: Mapping[str, list[int]],
) -> list[bool]:
    """For each token of all answers, whether a drafter chooses the same token."""
    return [
        same
        for kind, prompt in prompts.items()
        for same in agreeing(drafter.model, target, prompt, answers[kind])
    ]


def _check_room(
    target: LanguageModel, prompts: Mapping[str, Tokens], tokens: int
) -> None:
    sizes = [prompt.size + tokens for prompt in prompts.values()]
    least = max([WIDEST + 1, *sizes])
    if least > target.n_ctx:
        raise ConfigError(
            f"comparing chains needs a context of {least} tokens, this one has "
            f"{target.n_ctx}: give a larger one (-c)"
        )


class _Heed:
    """Ends a tuning early if other programs use much CPU time."""

    def __init__(self) -> None:
        self._others, self._began = Others(), perf_counter()

    def __call__(self) -> None:
        """Raise EdgecsError, unless the tuning has just begun."""
        if perf_counter() - self._began > _SOON:
            self.judge()

    def judge(self) -> None:
        """Raise EdgecsError if other programs have used too much CPU time."""
        if why := busy(self._others):
            raise EdgecsError(
                f"{why}, so nothing was kept: end these programs, and run `edgecs "
                "tune` again"
            )


def _measure(
    known: SpeculationProfile,
    effort: Effort,
    heed: _Heed,
    progress: Progress,
    clock: Clock,
) -> list[Curve]:
    """Measure times and exact widths of the target, and store them in `known`."""
    target, curves = known.target, list[Curve]()
    for depth, widths in places(target.n_ctx):
        progress(timing(depth, widths))
        repeats = effort.deeper if curves else effort.repeats
        curves.append(sweep(target, depth, widths, repeats, between=heed, clock=clock))
    known.costs, known.classes = _costs(curves), Classes()
    classify(
        target,
        known.classes,
        effort.widths,
        deepest=DEEPEST + ROOM,
        progress=lambda depth: progress(comparing(depth)),
    )
    known.prepare(0.0, progress)  # nothing is left to probe: it only sets the limits
    return curves


def _sweep_drafter(
    drafter: LoadedDrafter,
    effort: Effort,
    progress: Progress,
    clock: Clock,
) -> Curve:
    progress(timing_drafter(drafter.name))
    depth = max(1, min(SHALLOW, drafter.model.n_ctx - WIDEST))
    return sweep(drafter.model, depth, REVIEWS, effort.repeats, clock=clock)


def _costs(curves: Sequence[Curve]) -> CostModel:
    """A cost model of the curves; those of a busy machine get little weight."""
    costs = CostModel()
    for curve in curves:
        costs.measured(curve.depth, curve.seconds)
    if any(curve.unsure > _DRIFTS for curve in curves):
        costs.distrust()
    return costs


def _times(known: SpeculationProfile, curve: Curve) -> Times:
    """The measured curve, inf for widths that are not allowed."""
    times = _costs([curve]).seconds(curve.depth)
    return np.where(known.limits.allowed(curve.depth), times, np.inf)


def keep(known: SpeculationProfile, key: Key, tuned: Tuned) -> bool:
    """Save the profile of `key`; returns False if it cannot be saved.

    known: as `tune` left it. Curves of drafters that were not measured are kept.
    """
    before = known.profile.chain.get("drafters") if known.profile else None
    others = before if isinstance(before, dict) else {}
    ours = {drafter.fingerprint: drafter.costs.state() for drafter in tuned.drafters}
    known.profile = Profile(
        key,
        chain={
            "drafters": {**others, **ours},
            "right": {d.fingerprint: round(d.right, 4) for d in tuned.drafters},
            "tried": {d.fingerprint: d.name for d in tuned.drafters},
            "overlap": {
                d.fingerprint: overlap_pays(tuned.overlap[d.name])
                for d in tuned.drafters
                if d.name in tuned.overlap
            },
            "table": tuned.table(),
            "chosen": tuned.chosen.chain.parts,
            "unsteady": tuned.unsteady,
        },
        tuned=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return known.save()
