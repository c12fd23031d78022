"""Compare chains of drafters with plain decoding, and choose one.

The speed of a chain is its ratio to plain decoding just before and just after it, on
the same prompt, so that drift of the machine does not affect the result. If plain
decoding itself has changed by more than DRIFT in between, the ratio is discarded.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean, median
from typing import NamedTuple

from edgecs.core.context import Tokens
from edgecs.planning.planner import MARGIN
from edgecs.tuning.cost_sweep import DRIFT

# chosen: the noise of a short answer's speed.
NO_HARM = 0.97  # ratio to plain decoding below which a chain counts as slower
# chosen: drift that lasts longer is reported instead.
_TRIES = 3  # runs of a chain on a prompt if the machine drifts or the chain is slower
# chosen: with fewer, one round decides the speed.
FEWEST = 8  # tokens of the shortest answer whose speed is used
# chosen: not 0, because of the geometric mean.
_LEAST = 0.01  # ratio of an answer that ended at once

PROMPTS = {
    "code": "Write a Python class `Inventory` with the methods add(name, count), "
    "remove(name, count), count(name) and total(). Every method has a docstring, and "
    "wrong input raises ValueError.",
    "revision": "Give every function of this file a docstring and change nothing else. "
    "Answer with the whole file.\n\n"
    "def area(width, height):\n    if width < 0 or height < 0:\n"
    '        raise ValueError("a side cannot be negative")\n    return width * height\n'
    "\n\ndef volume(width, height, depth):\n    if depth < 0:\n"
    '        raise ValueError("a side cannot be negative")\n'
    "    return area(width, height) * depth\n",
    "summary": "Summarise this report in three sentences, in its own words as far as "
    "possible.\n\nThe night train to the coast will not run in March. The bridge over "
    "the river was damaged by ice in January, and the railway says that repairs will "
    "take six weeks. Buses will replace the train between the two stations nearest to "
    "the bridge. Tickets that were already sold stay valid on the buses, and whoever "
    "does not want to take a bus gets the money back at any station.",
    "question": "Why does bread rise in the oven, and why does it go stale when it is "
    "kept? Explain it to a child in two paragraphs.",
}
"""The prompts of the comparison, by kind of task."""


class Chain(NamedTuple):
    """The drafters of a target; none is plain decoding."""

    drafters: tuple[str, ...]  # names, the best first; each reviews the next ones
    mag: bool  # whether Max-Gram comes last
    ahead: bool = False  # whether the first one goes on while the target computes

    @property
    def parts(self) -> list[str]:
        """Names of all drafters."""
        return [*self.drafters, *(["mag"] if self.mag else [])]

    @property
    def name(self) -> str:
        """Readable name of the chain."""
        name = " <- ".join(self.parts) or "plain"
        return f"{name}, overlapped" if self.ahead else name


PLAIN, MAG = Chain((), False), Chain((), True)


def chains(names: Sequence[str]) -> list[Chain]:
    """All chains of these drafters, the simplest first.

    >>> [chain.name for chain in chains(["big", "small"])][2:]
    ['big <- mag', 'small', 'small <- mag', 'big <- small <- mag']
    """
    found = [MAG]
    for name in names:
        found += [Chain((name,), False), Chain((name,), True)]
    return [*found, Chain(tuple(names), True)] if len(names) > 1 else found


def with_overlap(chains: Sequence[Chain], names: Container[str]) -> list[Chain]:
    """The chains, each followed by the same one with a drafter that works ahead.

    names: drafters that can do that.

    >>> [chain.name for chain in with_overlap([MAG, Chain(("a",), True)], {"a"})]
    ['mag', 'a <- mag', 'a <- mag, overlapped']
    """
    found = list[Chain]()
    for chain in chains:
        found.append(chain)
        if chain.mag and chain.drafters and chain.drafters[0] in names:
            found.append(chain._replace(ahead=True))
    return found


def overlap_gains(trials: Sequence[Trial]) -> dict[str, float]:
    """By first drafter, the speed of its simplest overlapped chain over that without.

    It is 0 for a chain that is slower than plain decoding on some kind of task.
    """
    means = {trial.chain: trial.mean for trial in trials}
    found: dict[str, float] = {}
    for trial in trials:
        without = means.get(trial.chain._replace(ahead=False), 0.0)
        if trial.chain.ahead and trial.ratios and without:
            gain = trial.mean / without if trial.harmless else 0.0
            found.setdefault(trial.chain.drafters[0], gain)
    return found


def overlap_pays(gain: float) -> bool:
    """Whether a gain, see `overlap_gains`, is more than the error of times."""
    return gain >= 1 + MARGIN


def playing(kind: str, chain: Chain) -> str:
    """Progress message of a chain on the prompt of a kind."""
    return f"{kind}: {chain.name}"


class Run(NamedTuple):
    """An answer: its tokens per second after the first token, and its tokens."""

    rate: float
    tokens: list[int]


Play = Callable[[Chain, Tokens], Run]
"""Answers a prompt with a chain."""


@dataclass
class Trial:
    """Measured speed of a chain."""

    chain: Chain
    ratios: dict[str, float] = field(default_factory=dict)  # to plain decoding, by kind

    @property
    def speedup(self) -> float | None:
        """Median over the kinds; None if there are no measurements."""
        return median(self.ratios.values()) if self.ratios else None

    @property
    def mean(self) -> float:
        """Geometric mean over the kinds; 0 if there are no measurements."""
        return geometric_mean(self.ratios.values()) if self.ratios else 0.0

    @property
    def worst(self) -> str:
        """The kind on which the chain was slowest."""
        return min(self.ratios, key=self.ratios.__getitem__)

    @property
    def harmless(self) -> bool:
        """Whether it was as fast as plain decoding on every kind, within the noise."""
        return bool(self.ratios) and self.ratios[self.worst] >= NO_HARM


@dataclass
class Comparison:
    """Results of all chains on all prompts."""

    trials: list[Trial]
    plain: dict[str, float] = field(default_factory=dict)  # tokens per second by kind
    discarded: int = 0  # ratios discarded because the machine drifted
    unsure: int = 0  # ratios used although the machine drifted


def compare(
    chains: Sequence[Chain],
    prompts: Mapping[str, Tokens],
    play: Play,
    progress: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Run every chain on every prompt, alternating with plain decoding.

    A chain that seems slower than plain decoding is run again before that counts.
    """
    found = Comparison([Trial(chain) for chain in chains])
    for kind, prompt in prompts.items():
        progress(playing(kind, PLAIN))
        rates = [play(PLAIN, prompt).rate]
        for trial in found.trials:
            progress(playing(kind, trial.chain))
            trial.ratios[kind] = _ratio(trial.chain, prompt, play, rates, found)
        found.plain[kind] = median(rates)
    return found


def _ratio(
    chain: Chain, prompt: Tokens, play: Play, plain: list[float], found: Comparison
) -> float:
    """Speed of a chain over plain decoding; adds the rates of plain runs to `plain`."""
    steady: list[float] = []
    drifted: list[float] = []
    while len(steady) + len(drifted) < _TRIES:
        rate = play(chain, prompt).rate
        plain.append(play(PLAIN, prompt).rate)
        before, after = plain[-2:]
        ratio = max(_LEAST, 2 * rate / (before + after))
        if max(before, after) > (1 + DRIFT) * min(before, after):
            drifted.append(ratio)
            continue
        steady.append(ratio)
        if ratio >= NO_HARM:
            break
    found.discarded += len(drifted) if steady else 0
    found.unsure += not steady
    return median(steady or drifted)


def choose(trials: Sequence[Trial]) -> Trial:
    """The fastest chain that is never slower than plain decoding, or Max-Gram alone.

    A planner with Max-Gram uses plain decoding whenever that is faster. trials: simple
    chains first; a later one must be faster by more than MARGIN, because it takes
    memory, and because of noise. Raises StopIteration without Max-Gram.
    """
    best = None
    for trial in trials:
        if trial.harmless and trial.mean >= (best.mean * (1 + MARGIN) if best else 1):
            best = trial
    return best or next(trial for trial in trials if trial.chain == MAG)


def verdict(trial: Trial, chosen: Trial) -> str:
    """Why a chain was chosen, or why not."""
    if not trial.ratios:
        return "not measured: every answer ended after a few tokens"
    worst = f"{trial.ratios[trial.worst]:.2f} of plain decoding on a {trial.worst} task"
    if trial is chosen:
        stays = f"default, as no chain is faster on every task; {worst}"
        return "chosen" if trial.harmless and trial.mean >= 1 else stays
    if not trial.harmless:
        return worst
    if trial.mean < 1:
        return f"no faster than plain decoding, {trial.mean:.2f} on average"
    simpler = " and is simpler" if trial.mean > chosen.mean else ""
    other = f"{chosen.chain.name} has {chosen.mean:.2f}{simpler}"
    return f"{trial.mean:.2f} on average, {other}"
