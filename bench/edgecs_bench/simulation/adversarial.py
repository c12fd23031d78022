"""Adversarial drafters, generated from the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from edgecs_bench.simulation.replay_drafter import UNSAID
from edgecs_bench.simulation.traces import Proposals, Trace

_SIZE = 8  # tokens of a proposal


class Kind(NamedTuple):
    """A kind of adversarial drafter."""

    name: str
    pace: float  # factor on a drafter's times
    right: Callable[[int], bool]  # whether it is right at an output position
    says: float  # the probability that it reports

    def spoil(self, trace: Trace) -> Trace:
        """The answer with the proposals of this drafter."""
        tokens, confidences = [], []
        for at in range(len(trace.output)):
            draft = [
                token if self.right(at + i) else UNSAID
                for i, token in enumerate(trace.output[at : at + _SIZE])
            ]
            tokens.append(draft)
            confidences.append([self.says] * len(draft))
        return replace(trace, proposals={self.name: Proposals(tokens, confidences)})


KINDS = (
    Kind("always wrong", 0.2, lambda at: False, 0.6),
    Kind("confident and wrong", 0.2, lambda at: False, 0.995),
    Kind("right for 50 tokens, then wrong", 0.2, lambda at: at < 50, 0.95),
    Kind("always right, but slow", 4.0, lambda at: True, 0.99),
)
