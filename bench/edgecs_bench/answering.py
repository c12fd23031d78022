"""A timed greedy answer, for benches that compare ways to draft in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.core.context import Tokens
from edgecs.planning.planner import Planner
from edgecs.runtime.loader import Loaded
from edgecs.session.session import Session
from edgecs.session.stats import Stats


class Said(NamedTuple):
    """One answer."""

    rate: float  # tokens per second after the first
    tokens: list[int]
    stats: Stats


def answer(
    loaded: Loaded,
    planner: Planner | None,
    known: SpeculationProfile | None,
    prompt: Tokens,
    most: int,
    on_token: Callable[[int], None] = lambda count: None,
) -> Said:
    """One greedy answer; the cells of the prompt may be there from an earlier one.

    on_token: is given the number of tokens so far.
    """
    limits = known.limits if known and planner else None
    vocabulary = loaded.model.vocabulary
    with Session(loaded.target, vocabulary, schedule=planner, limits=limits) as session:
        ids, began = list[int](), 0.0
        for token in session.generate(prompt, max_tokens=most):
            began = began or time.perf_counter()
            ids.append(token.id)
            on_token(len(ids))
        seconds = time.perf_counter() - began
        return Said((len(ids) - 1) / max(seconds, 1e-9), ids, session.stats)
