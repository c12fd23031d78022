"""Excerpts under a planner: what they cost is known, and they are used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecs.core.context import Context
from edgecs.core.draft import score_one
from edgecs.costs.cost_model import CostModel
from edgecs.decoding.excerpt_reader import ExcerptReader
from edgecs.planning.ahead import Ahead
from edgecs_bench.simulation.replay_drafter import Watch
from tests.planning.timed_models import Near, Timed, opened, planned

SPAN, READING = 400, 1e-3  # tokens; seconds a token
VOCABULARY = 40


class Reading(ExcerptReader):
    """A reader of a model whose times are known."""

    model: Any

    def measured(self, costs: CostModel) -> None:
        self.model.measured(costs)


def models(span: int) -> tuple[Timed, Near]:
    """A target that looks at three tokens, and a drafter that always agrees."""
    target = Timed(Watch(), VOCABULARY, 3, memory=3, single=50.0)
    return target, Near(target, 0.0, single=2.0, n_ctx=span)


def prompt(size: int) -> list[int]:
    return np.random.default_rng(size).integers(0, VOCABULARY, size).tolist()


def test_a_drafter_with_a_short_context_drafts_behind_a_long_prompt():
    for reads in True, False:
        target, small = models(SPAN)
        planner = planned(target, [Reading(small) if reads else small])
        with opened(target, planner) as session:
            said = [t.id for t in session.generate(prompt(1500), max_tokens=60)]
            assert said == target.greedy(prompt(1500), 60)
            by_drafter = sum(
                record.tested[node] == "d0"
                for record in session.stats.records
                for node in record.accepted
            )
            read = session.cascade.excerpts(session.context)
        assert (by_drafter > 20) == reads
        assert read.keys() == ({"d0"} if reads else set())
        assert all(SPAN // 2 <= tokens < SPAN // 2 + 70 for tokens in read.values())


@pytest.mark.parametrize("size", [600, 3000])
def test_a_planner_expects_the_time_of_reading_the_excerpt(size: int):
    target, small = models(SPAN)
    reader = Reading(small)
    (neural,) = planned(target, [reader]).neural
    neural.review.reading = READING
    context = Context(prompt(size))
    half = (SPAN // 2) * READING
    usual, backlog = neural.backlog_cost(context)
    assert usual + backlog == pytest.approx(half)
    score_one(reader, context)
    assert neural.backlog_cost(context)[1] == 0.0
    context.append(prompt(200))  # no room for that: the next call reads another one
    usual, backlog = neural.backlog_cost(context)
    assert 0.2 * half < usual + backlog < half
    score_one(reader, context)
    reader.begin(len(context))  # the same question has the same excerpt
    assert neural.backlog_cost(context)[1] == 0.0


def test_calls_behind_a_long_context_are_those_of_the_span():
    """Times by depth are those of what is read, not of what the target reads."""
    target, small = models(SPAN)
    (neural,) = planned(target, [Reading(small)]).neural
    neural.costs.measured(SPAN, {1: 0.004, 4: 0.008})
    near, far = (neural.review.times(depth)[0] for depth in (SPAN, 50 * SPAN))
    assert near == far > neural.review.times(0)[0]


def test_working_ahead_takes_the_times_of_what_is_read():
    target, small = models(SPAN)
    (neural,) = planned(target, [Reading(small)]).neural
    neural.costs.measured(SPAN, {1: 0.004, 4: 0.008})
    rates = [
        Ahead(clock=target.watch.now).offer(
            neural, Context(prompt(size)), [0.05] * 9, 0.0, 0.0, 0
        )
        for size in (SPAN, 8 * SPAN)
    ]
    assert rates[0] == rates[1] > 0
