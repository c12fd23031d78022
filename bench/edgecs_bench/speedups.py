"""What pairs of answers say about speed: numbers by category, nothing is run here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

RESAMPLES = 4000
INTERVAL = (5.0, 95.0)  # percentiles
_MODES = ("plain", "speculative")


@dataclass(frozen=True)
class Timed:
    """One answer."""

    seconds: float  # from the first token to the last
    tokens: int
    looping: int  # of them, in repetition loops

    @property
    def each(self) -> float:
        """Seconds of a token after the first."""
        return self.seconds / (self.tokens - 1)


@dataclass(frozen=True)
class Pair:
    """One prompt answered plainly and with speculation, one after the other."""

    plain_first: bool
    plain: Timed
    speculative: Timed
    llama: Timed | None  # llama.cpp's own loop, where it was run
    rounds: int
    tested: int
    accepted: int
    tiers: dict[str, int]  # tokens by tier of their round
    compared: int  # tokens up to the end or to the fork, that token included
    fork: dict[str, Any] | None  # see `identity.fork`
    planner_us: float | None  # median of the planner's own time in a round

    @property
    def counts(self) -> bool:
        """Whether both answers are long enough to be timed."""
        return min(self.plain.tokens, self.speculative.tokens) > 1

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Pair:
        """What `dataclasses.asdict` made."""
        names = ("plain", "speculative", "llama")
        answers = {n: fields[n] and Timed(**fields[n]) for n in names}
        return cls(**{**fields, **answers})


@dataclass(frozen=True)
class Measured:
    """All pairs of one prompt."""

    category: str
    id: str
    prompt_tokens: int
    pairs: list[Pair]
    others: float  # share of the processors' time that other programs had

    @property
    def ratio(self) -> float:
        """Plain time of a token over speculative time, medians of the pairs."""
        plain = median(p.plain.each for p in self.pairs)
        return plain / median(p.speculative.each for p in self.pairs)

    @property
    def loops(self) -> bool:
        """Whether any answer has a repetition loop."""
        return any(p.plain.looping or p.speculative.looping for p in self.pairs)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Measured:
        """What `dataclasses.asdict` made."""
        pairs = [Pair.from_json(pair) for pair in fields["pairs"]]
        return cls(**{**fields, "pairs": pairs})


def llama_over_plain(measured: Sequence[Measured]) -> float | None:
    """Speed of llama.cpp's own loop over that of edgecs without speculation.

    The geometric mean over the pairs in which both were run; None: there are none.
    """
    both = [
        pair.plain.each / pair.llama.each
        for prompt in measured
        for pair in prompt.pairs
        if pair.llama and min(pair.llama.tokens, pair.plain.tokens) > 1
    ]
    return geometric_mean(both) if both else None


def summary(measured: Sequence[Measured], scale: float = 1.0) -> dict[str, Any]:
    """The row of one category, whose prompts these are.

    scale: speed of the baseline over plain decoding; every speed-up is divided by it.
    Prompts that are answered with a single token have no speed and are left out. None
    stands where nothing is left to say.
    """
    timed = [m for m in measured if all(pair.counts for pair in m.pairs)]
    pairs = [pair for m in timed for pair in m.pairs]
    plain, speculative = ([getattr(p, n) for p in pairs] for n in _MODES)
    ratios = [m.ratio / scale for m in timed]
    without = [m for m in timed if not m.loops]
    tokens = sum(a.tokens for a in (*plain, *speculative))
    tiers = sum((Counter(p.tiers) for p in pairs), Counter[str]())
    rounds, accepted = sum(p.rounds for p in pairs), sum(p.accepted for p in pairs)
    compared, forks = sum(p.compared for p in pairs), sum(bool(p.fork) for p in pairs)
    return {
        "category": measured[0].category,
        "prompts": len(timed),
        "tokens": sum(a.tokens for a in speculative),
        "plain": _rounded(_speed(plain)),
        "speculative": _rounded(_speed(speculative)),
        "speedup": _rounded(speedup(pairs, scale)),
        "geomean": _rounded(geometric_mean(ratios)) if ratios else None,
        "interval": bootstrap(ratios),
        "spread": spread(ratios),
        "accepted": accepted,
        "tested": sum(p.tested for p in pairs),
        "mean_accept_len": round((accepted + rounds) / rounds, 4) if rounds else None,
        "tiers": {k: round(n / tiers.total(), 4) for k, n in sorted(tiers.items())},
        "forks": forks,
        "forks_per_1000": round(1000 * forks / compared, 4) if compared else None,
        "looping": round(sum(a.looping for a in (*plain, *speculative)) / tokens, 4)
        if tokens
        else None,
        "prompts_without_loops": len(without),
        "speedup_without_loops": _rounded(
            speedup([pair for m in without for pair in m.pairs], scale)
        ),
    }


def speedup(pairs: Sequence[Pair], scale: float = 1.0) -> float | None:
    """All plain seconds per token over all speculative seconds per token.

    Per token, because the two answers differ in length where they fork.
    """
    plain, speculative = (_speed([getattr(p, n) for p in pairs]) for n in _MODES)
    return speculative / plain / scale if plain and speculative else None


def _speed(answers: Sequence[Timed]) -> float | None:
    """Tokens a second of several answers together."""
    seconds = sum(a.seconds for a in answers)
    return sum(a.tokens - 1 for a in answers) / seconds if seconds else None


def geometric_mean(values: Sequence[float]) -> float:
    """Of one value or more, all above 0."""
    return float(np.exp(np.log(values).mean()))


def bootstrap(ratios: Sequence[float], seed: int = 0) -> list[float] | None:
    """The 90 % interval [low, high] of the geometric mean, prompts drawn anew.

    It says how far the prompts decide the mean, not how noisy the machine is.
    """
    if not ratios:
        return None
    random = np.random.default_rng(seed)
    drawn = random.integers(0, len(ratios), (RESAMPLES, len(ratios)))
    means = np.exp(np.log(ratios)[drawn].mean(axis=1))
    return [round(float(x), 4) for x in np.percentile(means, INTERVAL)]


def spread(ratios: Sequence[float]) -> list[float] | None:
    """Minimum, quartiles and maximum."""
    if not ratios:
        return None
    return [round(float(x), 4) for x in np.percentile(ratios, (0, 25, 50, 75, 100))]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def results(measured: Sequence[Measured]) -> dict[str, Any]:
    """Everything that follows from the pairs, with one row for each category."""
    ratio = llama_over_plain(measured)
    scale = max(1.0, ratio or 1.0)
    names = list(dict.fromkeys(m.category for m in measured))
    rows = [summary([m for m in measured if m.category == n], scale) for n in names]
    speedups = {row["category"]: row["speedup"] for row in rows if row["speedup"]}
    worst = min(speedups, key=lambda name: speedups[name], default=None)
    own = [p.planner_us for m in measured for p in m.pairs if p.planner_us is not None]
    return {
        "llama_over_plain": ratio and round(ratio, 4),
        "baseline": "llama.cpp" if scale > 1 else "plain",
        "speedup": speedups,
        "geomean": round(geometric_mean([*speedups.values()]), 4) if speedups else None,
        "worst": worst and {"category": worst, "speedup": speedups[worst]},
        "planner_us": round(median(own), 2) if own else None,
        "others": round(sum(m.others for m in measured) / len(measured), 4),
        "categories": rows,
        "prompts": [asdict(m) for m in measured],
    }


def readable(row: dict[str, Any]) -> dict[str, object]:
    """A row of `summary` as a line of a table for people."""
    spread = row["spread"] or [float("nan")] * 5
    interval = row["interval"] or [float("nan")] * 2
    tiers = (f"{name} {100 * share:.0f} %" for name, share in row["tiers"].items())
    return {
        "category": row["category"],
        "prompts": row["prompts"],
        "tokens": row["tokens"],
        "plain": _shown(row["plain"], ".1f"),
        "spec": _shown(row["speculative"], ".1f"),
        "speedup": _shown(row["speedup"]),
        "geomean": _shown(row["geomean"]),
        "90 %": "-".join(f"{x:.2f}" for x in interval),
        "min q1 q2 q3 max": " ".join(f"{x:.2f}" for x in spread),
        "accepted": f"{row['accepted']}/{row['tested']}",
        "length": _shown(row["mean_accept_len"]),
        "tiers": ", ".join(tiers),
        "forks/1000": _shown(row["forks_per_1000"]),
        "looping": _shown(row["looping"], ".0%"),
        "no loops": f"{_shown(row['speedup_without_loops'])} "
        f"({row['prompts_without_loops']})",
    }


def _shown(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)
