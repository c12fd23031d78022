"""Expected throughput from cost curves, with typical acceptance of proposals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgecs.calibrate.speculation_profile import typical
from edgecs.costs.cost_model import best_width
from edgecs.costs.overlap import FAR, overlapped
from edgecs.planning.planner import MARGIN

Times = NDArray[np.float64]
"""Seconds of a call by width, [WIDEST], [n - 1] for n tokens; inf: not available."""


def best_draft(times: Times, step: float, right: float) -> tuple[float, float]:
    """Tokens and seconds of the best round with one drafter, or with plain decoding.

    step: seconds per token of the drafter. right: share of right tokens, among those
    whose predecessors are right.
    """
    wide = np.minimum.accumulate(times[::-1])[::-1][: FAR + 1]
    count = np.arange(FAR + 1)
    tokens, seconds = np.cumsum(right**count), wide + count * step
    best = int((tokens / seconds).argmax())
    return float(tokens[best]), float(seconds[best])


def needed(times: Times, step: float) -> float | None:
    """Least share of right tokens with which a drafter beats plain decoding.

    In steps of 0.01; None if even a share of 1 is not enough.
    """
    for percent in range(101):
        tokens, seconds = best_draft(times, step, percent / 100)
        if tokens / seconds > (1 + MARGIN) / float(times[0]):
            return percent / 100
    return None


def expected(
    times: Times,
    mag: bool,
    drafters: Sequence[tuple[float, float]] = (),
    *,
    ahead: bool = False,
) -> float:
    """Tokens per second over typical proposals, with the best drafter in every round.

    drafters: seconds per token and share of right tokens of each. ahead: whether the
    first one goes on during calls.
    """
    written = [best_draft(times, step, right) for step, right in drafters]
    if ahead and drafters:
        (step, right), *_ = drafters
        written.append((overlapped(right, times.tolist(), step).rate, 1.0))
    tokens = seconds = 0.0
    for path in typical() if mag else ([],):
        width = best_width(path, times.tolist(), MARGIN).width
        copied = 1 + sum(path[: width - 1]), float(times[width - 1])
        most, spent = max([copied, *written], key=lambda round_: round_[0] / round_[1])
        tokens, seconds = tokens + most, seconds + spent
    return tokens / seconds
