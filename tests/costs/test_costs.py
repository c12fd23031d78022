"""Costs: what was never tried is never guessed, and no outlier decides."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.costs.cost_model import SETTLED, WIDEST, YOUNG, CostModel, best_width

WIDTHS = (1, 2, 3, 4, 8, 16)
GOOD: dict[str, Any] = {
    "seconds": {"1": 0.01, "4": 0.02},
    "rounds": {"1": 9, "4": 2},
    "growth": {"0": [0.0] * WIDEST, "512": [0.001] * WIDEST},
    "settling": [0.002, 0.001],
}
NOISE = 0.05  # a call takes up to so much more or less than it should
OUTLIER = 3.0

seconds = st.floats(1e-4, 1.0)
curves = st.fixed_dictionaries(dict.fromkeys(WIDTHS, seconds))
calls = st.tuples(st.integers(-1, WIDEST + 2), st.integers(0, 5000), seconds)
depths = st.integers(0, 1 << 17)


class Machine:
    """Calls of known times with noise; of forty calls one is an outlier."""

    def __init__(self, times: dict[int, float], seed: int) -> None:
        self.times = times
        self._random = np.random.default_rng(seed)
        self._outliers: list[bool] = []

    def call(self, width: int) -> float:
        if not self._outliers:
            self._outliers = (self._random.permutation(40) == 0).tolist()
        noise = float(self._random.uniform(1 - NOISE, 1 + NOISE))
        return self.times[width] * noise * (OUTLIER if self._outliers.pop() else 1.0)

    def teach(self, costs: CostModel, rounds: int, widths: Sequence[int] = ()) -> None:
        for width in self._random.choice(widths or list(self.times), rounds).tolist():
            costs.observe(width, 0, self.call(width))


def at_width(costs: CostModel, width: int, depth: int = 0) -> float:
    return float(costs.seconds(depth)[width - 1])


def observed(calls: Iterable[tuple[int, int, float]]) -> CostModel:
    costs = CostModel()
    for call in calls:
        costs.observe(*call)
    return costs


@given(st.lists(calls, max_size=30), depths)
def test_a_width_costs_infinitely_much_until_it_was_tried(tried, depth: int):
    costs = observed(tried)
    widths = {width for width, _, _ in tried if 1 <= width <= WIDEST}
    times = costs.seconds(depth)
    assert times.shape == (WIDEST,)
    assert set((np.flatnonzero(np.isfinite(times)) + 1).tolist()) == widths
    assert (times > 0).all()
    assert costs.known == (1 in widths)


@given(curves, st.integers(0, 2**32), st.booleans())
@settings(max_examples=40)
def test_rounds_find_the_true_times(times, seed: int, measured: bool):
    machine, costs = Machine(times, seed), CostModel()
    if measured:  # on a day when every width took another time
        off = np.random.default_rng(seed).uniform(0.7, 1.4, len(times)).tolist()
        costs.measured(
            0, {n: t * x for (n, t), x in zip(times.items(), off, strict=True)}
        )
    machine.teach(costs, 1200)
    at, true = np.array(list(times)) - 1, np.array(list(times.values()))
    off_by = costs.seconds(0)[at] / true
    assert np.abs(np.log(off_by)).max() < 0.12  # the pace of the last few rounds
    assert np.abs(np.log(off_by / off_by[0])).max() < 0.05  # what decides a width
    found = []
    for _ in range(300):
        machine.teach(costs, 1)
        found.append(costs.seconds(0)[at] / true)
    np.testing.assert_allclose(np.mean(found, axis=0), 1, atol=0.05)


@given(curves, st.integers(0, 2**32), st.sampled_from(WIDTHS), st.floats(1e-6, 1e6))
def test_one_outlier_moves_no_width_far(times, seed: int, width: int, factor: float):
    machine, costs = Machine(times, seed), CostModel()
    machine.teach(costs, 200)
    at = np.array(WIDTHS) - 1
    before = costs.seconds(0)[at]
    costs.observe(width, 0, times[width] * factor)
    assert np.abs(np.log(costs.seconds(0)[at] / before)).max() < 0.1


@given(seconds, st.lists(st.floats(1, 50), min_size=YOUNG, max_size=YOUNG))
def test_a_young_width_believes_its_fastest_call(true: float, slower: list[float]):
    costs = observed((4, 0, true * factor) for factor in slower)
    assert at_width(costs, 4) == pytest.approx(true * min(slower))


@given(seconds, st.floats(0.3, 3))
def test_a_width_that_is_new_on_a_slow_day_costs_less_on_others(true, pace: float):
    costs = CostModel()
    costs.measured(0, {1: 0.01})
    for _ in range(200):
        costs.observe(1, 0, 0.01 * pace)
    costs.observe(4, 0, true * pace)
    assert at_width(costs, 4) == pytest.approx(true * pace)
    for _ in range(200):
        costs.observe(1, 0, 0.01)
    assert at_width(costs, 4) == pytest.approx(true, rel=0.2)


@given(curves, st.integers(0, 2**32), st.sampled_from([0.4, 0.7, 1.5, 2.5]))
def test_a_machine_that_changes_its_pace_moves_all_widths(times, seed, pace: float):
    machine, costs = Machine(times, seed), CostModel()
    costs.measured(0, times)
    machine.times = {width: pace * true for width, true in times.items()}
    machine.teach(costs, 150, widths=(1, 2))
    for width, true in times.items():
        # Also those that did not run meanwhile, less what 1 and 2 took for their own.
        assert at_width(costs, width) == pytest.approx(pace * true, rel=0.3)
        assert math.log(at_width(costs, width) / true) * math.log(pace) > 0
    for width in (1, 2):
        assert at_width(costs, width) == pytest.approx(pace * times[width], rel=0.1)
    assert math.log(costs.pace) * math.log(pace) > 0


class TestDepth:
    deep = st.dictionaries(st.integers(1, 9000), curves, min_size=1, max_size=4)

    @given(deep, depths)
    def test_no_time_is_less_than_at_the_start(self, later, depth: int):
        costs, first = CostModel(), dict.fromkeys(WIDTHS, 0.01)
        costs.measured(0, first)
        for at in sorted(later):
            costs.measured(at, later[at])
        times = costs.seconds(depth)[np.array(WIDTHS) - 1]
        assert (times >= 0.01 - 1e-12).all()
        assert [costs.single(depth)] == costs.times(depth, 1)
        costs.observe(4, depth, 0.01)  # what it expects is something to compare with

    @given(curves, st.integers(1, 64), st.floats(1e-3, 10), st.integers(0, 256))
    def test_growth_is_linear_between_and_beyond_depths(
        self, start, step: int, slope: float, bucket: int
    ):
        def true(width: int, depth: int) -> float:
            return start[width] * (1 + slope * depth / 4096)

        costs = CostModel()
        for depth in (0, 64 * step, 192 * step):
            costs.measured(depth, {width: true(width, depth) for width in WIDTHS})
        for width in WIDTHS:
            depth = 64 * bucket
            assert at_width(costs, width, depth) == pytest.approx(true(width, depth))

    @given(st.floats(0, 1), st.floats(0, 1))
    def test_widths_between_those_that_were_measured_deep_grow_too(self, low, high):
        costs = CostModel()
        costs.measured(0, dict.fromkeys((1, 2, 3, 4), 1.0))
        costs.measured(1024, {1: 1 + low, 4: 1 + high})
        grown = [at_width(costs, width, 1024) - 1 for width in (1, 2, 3, 4)]
        assert grown == pytest.approx(np.linspace(low, high, 4).tolist())

    @given(st.floats(0, 1), st.floats(0, 1))
    def test_widths_beyond_the_widest_grow_as_those_up_to_it(self, shared, each):
        costs = CostModel()
        costs.measured(0, dict.fromkeys((1, 4, 16), 1.0))
        costs.measured(1024, {n: 1 + shared + each * n for n in (1, 4)})
        assert at_width(costs, 16, 1024) == pytest.approx(1 + shared + 16 * each)

    def test_what_a_slow_machine_adds_is_not_taken_for_depth(self):
        costs = CostModel()
        costs.observe(1, 0, 0.01)
        costs.observe(4, 0, 0.02)
        for _ in range(400):
            costs.observe(1, 0, 0.02)
        costs.measured(1024, {1: 0.03, 4: 0.05})
        assert at_width(costs, 1, 1024) == pytest.approx(0.03, rel=0.05)
        assert at_width(costs, 1) == pytest.approx(0.02, rel=0.05)

    def test_a_width_that_was_only_measured_deep_stays_unknown(self):
        costs = CostModel()
        costs.measured(0, {1: 1.0, 2: 1.5})
        costs.measured(512, {1: 1.5, 4: 2.0})
        assert at_width(costs, 4, 512) == math.inf
        assert at_width(costs, 2, 512) == 2.0

    @given(st.integers(0, 4096), st.integers(0, 2**32))
    def test_rounds_at_any_depth_correct_the_same_curve(self, depth: int, seed: int):
        costs, random = CostModel(), np.random.default_rng(seed)
        costs.measured(0, {1: 0.010, 4: 0.020})
        costs.measured(2048, {1: 0.014, 4: 0.040})
        before = costs.seconds(depth)[[0, 3]].copy()
        for _ in range(300):
            width = int(random.choice([1, 4]))
            costs.observe(width, depth, 1.5 * float(before[0 if width == 1 else 1]))
        assert costs.seconds(depth)[[0, 3]] == pytest.approx(1.5 * before, rel=0.03)


class TestHoping:
    @given(st.lists(calls, max_size=30), seconds, depths)
    def test_it_is_no_more_than_what_is_known(self, tried, single: float, depth: int):
        costs = observed([(1, 0, single), *tried])
        hoped, times = np.array(costs.hoped(depth)), costs.seconds(depth)
        assert (hoped > 0).all()
        assert np.isfinite(hoped).all()
        assert (hoped <= times * (1 + 1e-9)).all()
        known = costs.rounds >= YOUNG
        np.testing.assert_allclose(hoped[known], times[known])

    @given(seconds, st.floats(1, 20), st.integers(1, YOUNG - 1))
    def test_one_that_was_timed_is_hoped_to_be_faster_in_part(
        self, single: float, factor: float, rounds: int
    ):
        costs = observed([(1, 0, single), *[(8, 0, factor * single)] * rounds])
        hoped = costs.hoped(0)[7]
        assert hoped <= factor * single
        assert hoped >= 0.6 * factor * single * (1 - 1e-9)
        if factor > 4:
            assert hoped < 0.9 * factor * single

    def test_a_width_nobody_tried_grows_with_depth_like_the_others(self):
        costs = CostModel()
        costs.measured(0, {1: 1.0, 4: 1.2})
        costs.measured(1024, {1: 2.0, 4: 5.2})  # each token adds 1.0 of its own
        start, deep = costs.hoped(0)[15], costs.hoped(1024)[15]
        assert start == pytest.approx(1 + 15 * 0.2 / 3)
        assert deep - start == pytest.approx(16)
        assert costs.least_more(1024) > 0.4 > costs.least_more(0)


class TestSettling:
    @given(curves, st.floats(0, 0.9), st.floats(0, 0.9), st.integers(0, 2**32))
    @settings(max_examples=40)
    def test_calls_after_a_wider_one_say_what_it_cost_them(
        self, times, first: float, second: float, seed: int
    ):
        machine, costs, seen = Machine(times, seed), CostModel(), Counter[int]()
        costs.measured(0, times)
        slower, after = [first * times[1], second * times[1]], SETTLED
        # As in plain decoding with some drafts: half of the calls have one token.
        shares = [0.5] + [0.5 / len(WIDTHS[1:])] * len(WIDTHS[1:])
        drawn = np.random.default_rng(seed).choice(WIDTHS, 1500, p=shares)
        for width in drawn.tolist():
            extra = slower[after] if width == 1 and after < SETTLED else 0.0
            costs.observe(width, 0, machine.call(width) + extra, after)
            after = after + 1 if width == 1 else 0
            seen[after] += 1
        assert min(seen[1], seen[2], seen[3]) > 0
        # An outlier in forty calls is taken for what it is only in part.
        assert costs.settling == pytest.approx(sum(slower), abs=0.3 * times[1])
        # The time of a single token is that of one that has settled.
        assert at_width(costs, 1) == pytest.approx(times[1], rel=0.12)

    @given(curves, st.floats(0.2, 5), st.lists(st.integers(0, 1), max_size=30))
    def test_no_single_call_says_more_than_that_it_took_twice_as_long(
        self, times, factor: float, afters: list[int]
    ):
        costs = CostModel()
        costs.measured(0, times)
        before = costs.seconds(0)
        for after in afters:
            costs.observe(1, 0, factor * times[1], after)
        most = SETTLED * min(1.0, abs(factor - 1)) * times[1]
        assert 0 <= costs.settling <= most * (1 + 1e-9)
        np.testing.assert_array_equal(costs.seconds(0), before)

    @given(curves, st.floats(0.01, 1), depths)
    def test_a_token_more_costs_that_too(self, times, share: float, depth: int):
        costs = CostModel()
        costs.measured(0, times)
        usual = costs.least_more(depth)
        assert costs.least_more(depth, settles=True) == usual
        costs.observe(1, 0, (1 + share) * times[1], 0)
        assert costs.least_more(depth) == usual
        more = costs.least_more(depth, settles=True)
        assert usual < more <= usual + share * (1 + 1e-9)


class TestState:
    @given(st.lists(calls, max_size=40), st.none() | st.tuples(curves, curves), depths)
    def test_what_comes_back_gives_the_same_times(self, tried, measured, depth: int):
        costs = CostModel()
        for at, curve in zip((0, 1024), measured or (), strict=False):
            costs.measured(at, curve)
        for call in tried:
            costs.observe(*call)
        state = json.loads(json.dumps(costs.state(), allow_nan=False))
        again = CostModel.from_state(state)
        np.testing.assert_allclose(again.seconds(depth), costs.seconds(depth), 1e-9)
        assert again.known == costs.known
        assert again.settling == costs.settling
        assert (again.rounds <= costs.rounds).all()
        young = costs.rounds < YOUNG
        np.testing.assert_array_equal(again.rounds[young], costs.rounds[young])

    def test_the_state_below_is_a_good_one(self):
        assert at_width(CostModel.from_state(GOOD), 4, 512) == 0.021

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("seconds", {"1": math.nan, "4": 0.02}),
            ("seconds", {"1": -0.01, "4": 0.02}),
            ("seconds", {"1": 0.0, "4": 0.02}),
            ("seconds", {"1": math.inf, "4": 0.02}),
            ("seconds", {"1": 10**400, "4": 0.02}),
            ("seconds", {"0": 0.01, "4": 0.02}),
            ("seconds", {str(WIDEST + 1): 0.01}),
            ("seconds", {"one": 0.01}),
            ("seconds", {"1": [0.01]}),
            ("seconds", {"1": None}),
            ("seconds", {"2": 0.01}),  # without its rounds
            ("seconds", [0.01]),
            ("seconds", None),
            ("rounds", {}),
            ("rounds", {"1": -1, "4": 2}),
            ("rounds", {"1": math.nan, "4": 2}),
            ("rounds", {"1": math.inf, "4": 2}),
            ("rounds", [9, 2]),
            ("growth", {"1": [0.0] * (WIDEST - 1)}),
            ("growth", {"1": [[0.0]] * WIDEST}),
            ("growth", {"1": 0.0}),
            ("growth", {"1": [math.nan] * WIDEST}),
            ("growth", {"1": [-0.001] * WIDEST}),
            ("growth", {"1": [10**400] * WIDEST}),
            ("growth", {"-1": [0.0] * WIDEST}),
            ("growth", {"deep": [0.0] * WIDEST}),
            ("growth", [[0.0] * WIDEST]),
            ("growth", None),
            ("settling", [0.0]),
            ("settling", [0.0, math.nan]),
            ("settling", [0.0, math.inf]),
            ("settling", [0.0, [0.0]]),
            ("settling", [0.0, 10**400]),
            ("settling", None),
        ],
    )
    def test_nonsense_is_refused(self, name: str, value: Any):
        with pytest.raises((ValueError, KeyError, TypeError)):
            CostModel.from_state({**GOOD, name: value})

    @pytest.mark.parametrize("name", GOOD)
    def test_a_part_that_is_missing_is_refused(self, name: str):
        with pytest.raises(KeyError):
            CostModel.from_state({k: v for k, v in GOOD.items() if k != name})

    @pytest.mark.parametrize("state", [None, [], 3, "seconds"])
    def test_what_is_no_state_is_refused(self, state: Any):
        with pytest.raises((ValueError, KeyError, TypeError)):
            CostModel.from_state(state)

    @given(curves, st.floats(1.2, 5.0))
    @settings(max_examples=30)
    def test_the_pace_is_kept_in_the_curve(self, times, pace: float):
        costs = CostModel()
        costs.measured(0, times)
        for _ in range(400):
            costs.observe(1, 0, pace * times[1])
        again = CostModel.from_state(costs.state())
        assert again.pace == 1
        assert at_width(again, 1) == pytest.approx(pace * times[1], rel=0.01)


probabilities = st.lists(st.floats(0, 1), max_size=WIDEST + 8).map(
    lambda p: np.array(sorted(p, reverse=True))
)
some_times = st.lists(
    st.just(math.inf) | seconds, min_size=WIDEST - 1, max_size=WIDEST - 1
)


class TestBestWidth:
    @given(probabilities, seconds, some_times, st.floats(0, 0.5))
    @settings(max_examples=300)
    def test_is_the_best_of_all_that_beat_plain_decoding(self, path, one, more, margin):
        times = np.array([one, *more])
        rates = {
            width: (1 + float(path[: width - 1].sum())) / float(times[width - 1])
            for width in range(2, min(path.size + 1, WIDEST) + 1)
        }
        best, plain = max(rates.values(), default=0.0), 1 / one
        width, rate = best_width(path, times, margin)
        assert rate == pytest.approx(rates.get(width, plain))
        if best > plain * (1 + margin) * (1 + 1e-9):
            assert rate == pytest.approx(best)
        if best < plain * (1 + margin) * (1 - 1e-9):
            assert width == 1

    def test_nothing_proposed_is_plain_decoding(self):
        assert best_width(np.array([]), np.ones(WIDEST)) == (1, 1.0)

    def test_nothing_known_but_one_token_is_plain_decoding(self):
        times = np.full(WIDEST, np.inf)
        times[0] = 0.5
        assert best_width(np.ones(10), times) == (1, 2.0)


def at(width: int, times: Mapping[int, float]) -> float:
    """Seconds of a call in a tile that ends with one of WIDTHS, or beyond the last."""
    ends = [n for n in WIDTHS if n >= width]
    return times[ends[0]] if ends else times[WIDTHS[-1]] * width / WIDTHS[-1]


@given(curves, st.floats(0, 1), depths)
def test_no_draft_pays_whose_first_token_is_right_too_seldom(
    times, share: float, depth: int
):
    costs = CostModel()
    costs.measured(0, {n: at(n, times) for n in range(1, WIDEST + 1)})
    least = costs.least_more(depth)
    path = [min(1.0, share * least)] * (WIDEST - 1)
    if least > 0 and share < 1 - 1e-9:
        assert best_width(path, costs.times(depth)).width == 1
    # It is no less than it has to be: a little more pays.
    if 1e-6 < least < 0.99:
        path = [least * 1.01] * (WIDEST - 1)
        assert best_width(path, costs.times(depth)).width > 1


@given(curves, seconds)
def test_what_a_token_more_costs_at_best_is_worked_out_anew(times, other: float):
    costs, again = CostModel(), CostModel()
    costs.measured(0, times)
    costs.least_more(0)
    costs.observe(5, 0, other)
    again.measured(0, times)
    again.observe(5, 0, other)
    assert costs.least_more(0) == again.least_more(0)
    more = (other / times[1] - 1) / 4
    assert costs.least_more(0) <= more + 1e-9 * abs(more)
