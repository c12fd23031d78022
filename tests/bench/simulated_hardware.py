"""Targets, drafters and answers to play on hardware that is not here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgecs.costs.cost_model import WIDEST
from edgecs_bench.hardware.machines import Drafter, Target
from edgecs_bench.simulation.chains import Chain
from edgecs_bench.simulation.simulation import play
from edgecs_bench.simulation.traces import Proposals, Recording, Trace

FLAT = Target("flat", {1: 10.0, WIDEST: 10.0}, 0.0)
STEEP = Target("steep", {1: 10.0, 2: 20.0, WIDEST: 320.0}, 0.5)
DRAFTER = Drafter("d", {1: 1.0, 2: 1.5, 4: 2.0}, 0.25)


def recording(*traces: Trace, drafters: tuple[str, ...] = ("d",)) -> Recording:
    return Recording("t", drafters, 0.0, 1, 8, traces)


def spoken(output: Sequence[int], right: Callable[[int], bool], size: int = 8) -> Trace:
    """An answer whose drafter is right at some positions."""
    tokens = [
        [t if right(at + i) else 7 for i, t in enumerate(output[at : at + size])]
        for at in range(len(output))
    ]
    stated = [[0.9] * len(draft) for draft in tokens]
    proposals = {"d": Proposals(tokens, stated)}
    return Trace("1", "qa", [1], list(output), [0.0] * len(output), proposals)


def took(label: str, trace: Trace, target: Target, drafter: Drafter = DRAFTER) -> float:
    """Milliseconds of an answer."""
    chain, known = Chain.parse(label), recording(trace)
    (tally,) = play(chain, known, target, {"d": drafter.steps}).values()
    assert tally.tokens == len(trace.output) - 1
    return tally.ms
