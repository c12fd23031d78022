"""Recorded texts and drafters, see `edgecs_bench.simulation.replay`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from edgecs.planning.planner import BUDGET
from edgecs_bench.hardware.curves import Curve
from edgecs_bench.simulation.replay import Player
from edgecs_bench.simulation.replay_drafter import UNSAID
from edgecs_bench.simulation.traces import Proposals, Trace

Right = Callable[[int], bool]
"""Whether a drafter is right at an output position."""


class Hostile(NamedTuple):
    """How a drafter means no good."""

    right: Right
    sure: float | None  # probability that it states; None: any


HOSTILE = {
    "always wrong": Hostile(lambda at: False, 0.6),
    "confident and wrong": Hostile(lambda at: False, 0.995),
    "random confidences": Hostile(lambda at: False, None),
    "right, then wrong": Hostile(lambda at: at < 50, 0.95),
    "now right, now wrong": Hostile(lambda at: (at // 20) % 2 == 0, None),
}


def drafts(
    output: list[int], how: Hostile, random: np.random.Generator, size: int = 8
) -> Proposals:
    """What a drafter says at every position."""
    tokens, said = [], []
    for at in range(len(output)):
        piece = output[at : at + size]
        tokens.append([t if how.right(at + i) else UNSAID for i, t in enumerate(piece)])
        sure = random.random(len(piece)) if how.sure is None else [how.sure] * 8
        said.append([float(p) for p in sure[: len(piece)]])
    return Proposals(tokens, said)


def answer(
    output: list[int],
    drafters: dict[str, Hostile] | None = None,
    *,
    prompt: Sequence[int] = (1, 2, 3),
    random: np.random.Generator | None = None,
) -> Trace:
    random = random or np.random.default_rng(0)
    proposals = {
        name: drafts(output, how, random) for name, how in (drafters or {}).items()
    }
    return Trace("", "", [*prompt], output, [0.0] * len(output), proposals)


def asked(player: Player) -> Counter[str]:
    """How often every drafter is called from now on."""
    calls: Counter[str] = Counter()
    for model in player.models:

        def score(requests, model=model, real=model.score):
            calls[model.named.name] += 1
            return real(requests)

        model.score = score  # type: ignore[method-assign]
    return calls


def widths(player: Player) -> Counter[int]:
    """How many rounds of every width there are from now on."""
    seen: Counter[int] = Counter()
    learn = player.planner.learn

    def look(context, outcome):
        seen[1 + len(outcome.draft)] += 1
        learn(context, outcome)

    player.planner.learn = look  # type: ignore[method-assign]
    return seen


def noise(size: int, random: np.random.Generator) -> list[int]:
    """A text without repetition."""
    found: list[int] = random.integers(10, 10**6, size).tolist()
    return found


def relative_pace(curve: Curve, step: float) -> float:
    """The pace at which a recorded drafter takes `step` of a target's single call."""
    return step * float(curve.times[0]) / 21.4


def keeps_its_budget(player: Player) -> None:
    """Lets no try begin when more than the budget is lost already."""
    planner, learn = player.planner, player.planner.learn

    def look(context, outcome):
        before = planner._lost
        learn(context, outcome)
        if planner._lost > before:
            assert before <= BUDGET * planner._busy

    planner.learn = look  # type: ignore[method-assign]


def repeating(random: np.random.Generator, size: int) -> list[int]:
    """A text of which two thirds were there before, in pieces."""
    text = noise(40, random)
    while len(text) < size:
        start = int(random.integers(0, len(text) - 20))
        text += text[start : start + 20] + noise(10, random)
    return text[:size]
