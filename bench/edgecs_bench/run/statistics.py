"""Statistics of answers, by category and overall.

Within a block every mode answers the same prompt, so a speed-up is a ratio within a
block: seconds per token of plain decoding over those of the mode. (Per token, because
answers that fork differ in length.) A prompt counts with the median over its repeats, a
category with the geometric mean over its prompts, a model with the geometric mean over
its categories.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecs_bench.run.answers import Answer
from edgecs_bench.run.modes import PLAIN

RESAMPLES = 2000
INTERVAL = (5.0, 95.0)  # percentiles

Ratios = list[list[float]]
"""Speed-ups of the repeats of every prompt, [prompt][repeat]."""


class Pair(NamedTuple):
    """An answer and that of plain decoding in the same block."""

    plain: Answer
    answer: Answer

    @property
    def counts(self) -> bool:
        """Whether both are long enough to be timed."""
        return min(self.plain.tokens, self.answer.tokens) > 1

    @property
    def decode(self) -> float:
        """The speed-up of decoding only."""
        return self.plain.each / self.answer.each

    @property
    def whole(self) -> float:
        """The speed-up including the time to the first token."""
        return self.plain.whole / self.answer.whole


Prompts = dict[str, list[Pair]]
"""The pairs of every prompt of a category, by its id."""


def pairs(answers: Iterable[Answer]) -> dict[tuple[str, float], dict[str, Prompts]]:
    """Pairs by mode and temperature, category, and prompt.

    Answers in drifted blocks are left out if the prompt also has answers in blocks
    without drift.
    """
    answers = list(answers)
    plain = {a.block: a for a in answers if a.mode == PLAIN}
    found: dict[tuple[str, float], dict[str, Prompts]] = {}
    for answer in answers:
        if answer.block in plain:
            by_category = found.setdefault((answer.mode, answer.temperature), {})
            prompts = by_category.setdefault(answer.category, {})
            pair = Pair(plain[answer.block], answer)
            prompts.setdefault(answer.id, []).append(pair)
    for by_category in found.values():
        for prompts in by_category.values():
            for name, several in prompts.items():
                steady = [pair for pair in several if not pair.answer.drifted]
                prompts[name] = steady or several
    return found


def rows(answers: Iterable[Answer]) -> list[dict[str, Any]]:
    """One row for every category, mode and temperature."""
    return [
        {
            "category": category,
            "mode": mode,
            "temperature": temperature,
            **summary(prompts),
        }
        for (mode, temperature), by_category in pairs(answers).items()
        for category, prompts in by_category.items()
    ]


def summary(prompts: Prompts) -> dict[str, Any]:
    """The numbers of one category in one mode.

    Prompts that are answered with a single token have no speed and do not count for
    speeds. None means that there are no data.
    """
    every = [pair.answer for several in prompts.values() for pair in several]
    timed = {n: p for n, p in prompts.items() if all(pair.counts for pair in p)}
    straight = {n: p for n, p in timed.items() if not _loops(p)}
    found, without = ratios(timed), ratios(straight)
    said = [pair.answer for several in timed.values() for pair in several]
    return {
        "prompts": len(timed),
        "tokens": sum(a.tokens for a in every),
        "speed": rounded(speed(said)),
        "speedup": rounded(mean(found)),
        "interval": interval([found]),
        "spread": spread(found),
        "ttft_ms": rounded(median(a.ttft_ms for a in every)),
        "end_to_end": rounded(mean(ratios(prompts, lambda pair: pair.whole))),
        **_drafts(every),
        "tiers": _tiers(every),
        "forks": sum(a.fork is not None for a in every),
        "forks_per_1000": _per_1000(every),
        "identical": sum(a.fork is None for a in every),
        "looping": rounded(_looping(every)),
        "speedup_without_loops": rounded(mean(without)),
        "prompts_without_loops": len(straight),
        "joules_per_token": rounded(_joules(every)),
    }


def _loops(several: Sequence[Pair]) -> bool:
    """Whether any answer has a repetition loop."""
    return any(pair.plain.looping or pair.answer.looping for pair in several)


def _drafts(answers: Sequence[Answer]) -> dict[str, Any]:
    """Tested and accepted tokens; None: a runtime does not report them."""
    if any(a.tested is None or a.accepted is None for a in answers):
        return {"accepted": None, "tested": None, "mean_accept_len": None}
    accepted = sum(a.accepted or 0 for a in answers)
    emitted = sum(a.tokens - 1 for a in answers)
    rounds = emitted - accepted
    return {
        "accepted": accepted,
        "tested": sum(a.tested or 0 for a in answers),
        "mean_accept_len": round(emitted / rounds, 4) if rounds > 0 else None,
    }


def _tiers(answers: Sequence[Answer]) -> dict[str, float]:
    found = sum((Counter(a.tiers) for a in answers), Counter[str]())
    return {name: round(n / found.total(), 4) for name, n in sorted(found.items())}


def _per_1000(answers: Sequence[Answer]) -> float | None:
    compared = sum(a.compared for a in answers)
    forks = sum(a.fork is not None for a in answers)
    return round(1000 * forks / compared, 4) if compared else None


def _looping(answers: Sequence[Answer]) -> float | None:
    tokens = sum(a.tokens for a in answers)
    return sum(a.looping for a in answers) / tokens if tokens else None


def _joules(answers: Sequence[Answer]) -> float | None:
    if any(a.joules is None for a in answers):
        return None
    tokens = sum(a.tokens for a in answers)
    return sum(a.joules or 0.0 for a in answers) / tokens if tokens else None


def overall(answers: Iterable[Answer]) -> list[dict[str, Any]]:
    """One row for every mode and temperature, over all categories."""
    found = []
    for (mode, temperature), by_category in pairs(answers).items():
        timed = {
            category: {n: p for n, p in prompts.items() if all(x.counts for x in p)}
            for category, prompts in by_category.items()
        }
        decode = {name: ratios(prompts) for name, prompts in timed.items() if prompts}
        whole = [ratios(p, lambda pair: pair.whole) for p in by_category.values()]
        means = {name: mean(several) for name, several in decode.items()}
        known = {name: value for name, value in means.items() if value}
        worst = min(known, key=lambda name: known[name], default=None)
        own = [
            pair.answer.planner_us
            for prompts in by_category.values()
            for several in prompts.values()
            for pair in several
            if pair.answer.planner_us is not None
        ]
        found.append(
            {
                "mode": mode,
                "temperature": temperature,
                "geomean": rounded(geometric_mean([*known.values()])),
                "interval": interval([*decode.values()]),
                "worst": worst
                and {"category": worst, "speedup": rounded(known[worst])},
                "end_to_end": rounded(
                    geometric_mean([m for w in whole if (m := mean(w))])
                ),
                "planner_us": round(median(own), 2) if own else None,
            }
        )
    return found


def ratios(
    prompts: Mapping[str, Sequence[Pair]],
    of: Callable[[Pair], float] = lambda pair: pair.decode,
) -> Ratios:
    """Speed-ups of the repeats of every prompt."""
    return [[of(pair) for pair in several] for several in prompts.values() if several]


def mean(prompts: Ratios) -> float | None:
    """The geometric mean over the prompts of the medians over their repeats."""
    return geometric_mean([median(several) for several in prompts])


def speed(answers: Sequence[Answer]) -> float | None:
    """Tokens per second of several answers, without their first tokens."""
    seconds = sum(a.decode_ms for a in answers) / 1e3
    return sum(a.tokens - 1 for a in answers) / seconds if seconds else None


def geometric_mean(values: Sequence[float]) -> float | None:
    """The geometric mean of the values above 0; None: there are none."""
    return float(np.exp(np.log(values).mean())) if values else None


def interval(categories: Sequence[Ratios], seed: int = 0) -> list[float] | None:
    """The 90 % bootstrap interval [low, high] of the mean over categories.

    Prompts are resampled within their category and repeats within their prompt, so the
    interval covers the choice of prompts and the noise of the machine.
    """
    full = [prompts for prompts in categories if prompts]
    parts = [_drawn(prompts, seed + i) for i, prompts in enumerate(full)]
    if not parts:
        return None
    means = np.exp(np.mean(parts, axis=0))
    return [round(float(x), 4) for x in np.percentile(means, INTERVAL)]


def _drawn(prompts: Ratios, seed: int) -> NDArray[np.float64]:
    """Means of the logarithms of resampled prompts, [RESAMPLES]."""
    random = np.random.default_rng(seed)
    total = np.zeros((RESAMPLES, len(prompts)))
    for i, several in enumerate(prompts):
        logs = np.log(several)
        again = random.integers(0, logs.size, (RESAMPLES, logs.size))
        total[:, i] = np.median(logs[again], axis=1)
    if len(prompts) == 1:
        return total[:, 0]
    chosen = random.integers(0, len(prompts), (RESAMPLES, len(prompts)))
    return np.asarray(np.take_along_axis(total, chosen, axis=1).mean(axis=1))


def spread(prompts: Ratios) -> list[float] | None:
    """Minimum, quartiles and maximum over the prompts."""
    if not prompts:
        return None
    middles = [median(several) for several in prompts]
    return [round(float(x), 4) for x in np.percentile(middles, (0, 25, 50, 75, 100))]


def rounded(value: float | None) -> float | None:
    """The value with four decimals."""
    return None if value is None else round(value, 4)
