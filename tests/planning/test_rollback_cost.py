"""Rejected drafts that cost another call: the planner knows before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Request, Rows
from edgecs.costs.cost_model import CostModel
from edgecs.costs.rollback_cost import RollbackCost
from edgecs.engines.kv_prefix import PrefixCache
from edgecs.planning.acceptance import Calibration
from edgecs.planning.neural_source import ReviewSchedule
from edgecs.planning.sources import Proposed, Sources
from edgecs.sampling.chain import greedy
from edgecs_bench.simulation.replay_drafter import Watch
from tests.planning.timed_models import FLAT, Near, Timed, opened, planned

LINE = {1: 1.0, 2: 1.1, 4: 1.3, 8: 1.7, 16: 2.5, 32: 4.1}
RESTORE = 0.002  # seconds


class Stateful(Timed):
    """Its cells go back to where the last draft began, and are computed again.

    snapshots: tokens of a draft that it can remove.
    """

    def __init__(self, watch: Watch, vocab: int, *, snapshots: int, **more: object):
        super().__init__(watch, vocab, memory=3, **more)  # type: ignore[arg-type]
        self.snapshots = snapshots
        self.restoring = RESTORE
        self.redone = 0
        self._base = self._called = 0
        own = self._cells[0]
        own.cache = PrefixCache(self._drop)

    def _drop(self, length: int) -> int:
        own = self._cells[0]
        removed = len(own.ids) - length
        left = length
        if removed > min(self.snapshots, max(0, self._called - 1)):
            left = min(self._base, length)
            self.watch.pass_by(RESTORE)
        del own.ids[left:]
        return left

    def rows(self, request: Request) -> Rows:
        own, context = self._cells[0], request.context
        kept = own.cache.keep(context, len(context) - 1)
        lost = own.cache.lost
        if lost and len(request.draft):
            self.watch.pass_by(float(self.times[min(lost, 32) - 1]))
            self.redone += lost
            again = context.tokens[kept : kept + lost].tolist()
            own.ids.extend(again)
            own.cache.extend(again, context)
            if kept + lost < len(context):
                self._base = kept + lost
        if len(request.draft):
            self._base = len(context) - 1
        rows = super().rows(request)
        self._called = rows.fed
        more = lost if lost and len(request.draft) else 0
        return rows._replace(fed=rows.fed + more)


def speed(
    snapshots: int, noise: float, *, told: bool, relative: dict[int, float], seed: int
) -> tuple[float, float]:
    """Milliseconds per token, relative to plain decoding, and mean drafted tokens."""
    watch = Watch()
    target = Stateful(watch, 40, snapshots=snapshots, relative=relative, seed=seed)
    drafter = Near(target, noise, single=0.3, relative=FLAT)
    planner = planned(target, [drafter])
    if told:
        planner.rollback = RollbackCost(planner.costs, snapshots, lambda: RESTORE)
    tokens = tested = 0
    with opened(target, planner) as session:
        began = watch.now()
        for start in range(6):
            said = [t.id for t in session.generate([start, 1, 2], max_tokens=120)]
            assert said == target.greedy([start, 1, 2], 120)
            tokens += len(said)
            tested += session.stats.tested
    return (watch.now() - began) / tokens / float(target.times[0]), tested / tokens


@pytest.mark.parametrize("noise", [0.2, 0.6, 1.5])
def test_a_planner_that_knows_is_not_slower_than_plain_decoding(noise: float):
    slowest = max(
        speed(0, noise, told=True, relative=relative, seed=seed)[0]
        for relative in (FLAT, LINE)
        for seed in range(2)
    )
    assert slowest < 1.06


def test_it_drafts_less_where_a_rejection_costs_a_call():
    free = speed(31, 0.6, told=True, relative=LINE, seed=0)
    costly = speed(0, 0.6, told=True, relative=LINE, seed=0)
    unaware = speed(0, 0.6, told=False, relative=LINE, seed=0)
    assert free[1] > costly[1]  # drafted tokens
    assert free[0] < costly[0] < unaware[0]  # time


def known(times: dict[int, float]) -> CostModel:
    costs = CostModel()
    costs.measured(0, times)
    return costs


def test_without_a_cost_the_times_are_those_of_the_calls():
    costs = known(LINE)
    cost = RollbackCost(costs)
    cost.learn(5, 2)
    assert not cost.applies
    assert cost.times(0, 8) == costs.times(0, 8)
    assert cost.rejected(0, [0.5] * 7, 8) == [0.0] * 8


@given(drafted=st.integers(0, 31), accepted=st.integers(0, 31), free=st.integers(0, 31))
def test_only_long_rejected_drafts_are_behind(drafted: int, accepted: int, free: int):
    cost = RollbackCost(known(FLAT), free)
    accepted = min(drafted, accepted)
    cost.learn(drafted, accepted)
    behind = cost.behind
    assert bool(behind) == (drafted - accepted > free)
    assert behind in (0, 1 + accepted)


@given(
    path=st.lists(st.floats(0, 1), max_size=31).map(
        lambda steps: np.cumprod(steps).tolist()
    ),
    free=st.integers(0, 8),
)
def test_what_a_rejection_costs_is_bounded_by_its_widest_call(
    path: list[float], free: int
):
    costs = known({n: 1 + 0.1 * (n - 1) for n in range(1, 33)})
    found = RollbackCost(costs, free).rejected(0, path, 32)
    assert found[: free + 1] == [0.0] * (free + 1)
    assert all(0 <= later <= 0.1 * width + 1e-9 for width, later in enumerate(found, 1))


class Copies(Sources):
    """Proposes seven tokens, each right with the same probability."""

    def __init__(self, odds: float) -> None:
        super().__init__((), Calibration())
        self._odds = odds

    def propose(self, context: Context, most: int, *args: object, **kw: object) -> Any:
        path = [self._odds**n for n in range(1, 8)][:most]
        return Proposed("copy", list(range(len(path))), path)


@given(st.floats(0.05, 0.99), st.integers(0, 15))
def test_a_drafter_reviews_no_more_if_it_computes_again(odds: float, removable: int):
    free = reviewed(odds, None)
    assert reviewed(odds, 15) == free
    assert reviewed(odds, removable) <= free


def test_a_drafter_reviews_less_where_a_rejection_costs_more_than_it_gains():
    found = [(reviewed(odds, None), reviewed(odds, 0)) for odds in (0.5, 0.8, 0.9)]
    assert found == [(3, 1), (7, 3), (7, 7)]


def reviewed(odds: float, removable: int | None) -> int:
    """How many tokens of a copy a drafter with such calls reviews."""
    schedule = ReviewSchedule(Copies(odds), None, removable=removable)
    schedule.costs.measured(0, LINE)
    return len(schedule.draft(Context([1, 2, 3]), greedy, 15).draft)
