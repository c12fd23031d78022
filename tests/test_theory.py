"""Expected gains against the papers' numbers and against rounds that are played."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgecs import theory
from edgecs.errors import ConfigError

SMALL, BASE = 77 / 11300, 248 / 11300  # FLAN-T5 parameters in millions over XXL's
CNN, WMT = (0.65, 0.73), (0.75, 0.80)  # rates of small and base
ROUNDS = 100_000

rates, below_1 = st.floats(0, 1), st.floats(0, 0.99)
costs = st.floats(0, 10)
lengths = st.integers(0, 12)
few = st.integers(0, 5)
near = pytest.approx


# --- the papers' numbers


@pytest.mark.parametrize(
    ("rate", "cost", "k", "ewif"),
    [
        (CNN[0], SMALL, 9, 2.656),
        (CNN[1], BASE, 8, 2.965),
        (WMT[0], SMALL, 12, 3.610),
        (WMT[1], BASE, 11, 3.751),
    ],
)
def test_speculative_decoding_is_as_in_table_1(
    rate: float, cost: float, k: int, ewif: float
):
    assert theory.speculative_ewif(rate, k, cost) == near(ewif, abs=5e-4)
    best = theory.best_speculative(rate, cost)
    assert best == ((k,), theory.speculative_ewif(rate, k, cost))


def test_base_on_wmt_gains_about_the_same_with_10_tokens_and_with_11():
    for k in (10, 11):
        assert theory.speculative_ewif(WMT[1], k, BASE) == near(3.75, abs=5e-3)


@pytest.mark.parametrize(
    ("data", "shown", "ewif", "best"),
    [(CNN, (5, 3), 3.028, ((5, 5), 3.046)), (WMT, (5, 8), 3.929, ((5, 8), 3.929))],
)
def test_the_horizontal_cascade_is_as_in_table_1(
    data: tuple[float, float],
    shown: tuple[int, int],
    ewif: float,
    best: tuple[tuple[int, int], float],
):
    small, base = data
    args = [base, small], [BASE, SMALL]
    assert theory.horizontal_ewif(args[0], shown, args[1]) == near(ewif, abs=5e-4)
    found = theory.best_horizontal(*args)
    assert (found.lengths, found.ewif) == (best[0], near(best[1], abs=5e-4))


@pytest.mark.parametrize(
    ("rate", "cost", "alone", "mag_2", "mag_4", "tail_3"),
    [
        (0.60, 0.30, 1.23, 1.29, 1.38, 1.43),
        (0.60, 0.15, 1.51, 1.58, 1.66, 1.63),
        (0.75, 0.15, 1.91, 2.03, 2.21, 2.01),
        (0.85, 0.15, 2.38, 2.61, 2.92, 2.48),
        (0.75, 0.05, 2.67, 2.79, 2.94, 2.72),
        (0.85, 0.05, 3.70, 3.95, 4.25, 3.76),
    ],
)
def test_a_free_drafter_helps_slow_drafters_most(
    rate: float, cost: float, alone: float, mag_2: float, mag_4: float, tail_3: float
):
    digits = {"abs": 0.005}
    assert theory.best_speculative(rate, cost).ewif == near(alone, **digits)
    for inner_rate, ewif in ((0.2, mag_2), (0.4, mag_4)):
        best = theory.best_vertical(rate, inner_rate, cost=cost, inner_cost=0)
        assert best.ewif == near(ewif, **digits)
    assert theory.best_horizontal([rate, 0.3], [cost, 0]).ewif == near(tail_3, **digits)


# --- played rounds: nothing here uses a formula


def accepted(hits: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Tokens before the first rejection, [rounds] of [rounds, draft length]."""
    return np.logical_and.accumulate(hits, axis=1).sum(axis=1)


def play_horizontal(rates: Sequence[float], lengths: Sequence[int], seed: int):
    rng = np.random.default_rng(seed)
    positions = np.repeat(rates, lengths)
    return 1 + accepted(rng.random((ROUNDS, positions.size)) < positions)


def play_cascade(
    rate: float,
    inner_rate: float,
    n: int,
    k: int,
    seed: int,
    tail_rate: float = 0.0,
    tail: int = 0,
):
    rng = np.random.default_rng(seed)
    head = np.zeros(ROUNDS, dtype=np.int64)
    for _ in range(n):  # the drafter keeps what it accepts and adds a token of its own
        head += accepted(rng.random((ROUNDS, k)) < inner_rate) + 1
    exists = np.arange(n * (k + 1)) < head[:, None]
    kept = accepted((rng.random(exists.shape) < rate) & exists)
    more = accepted(rng.random((ROUNDS, tail)) < tail_rate)
    return 1 + kept + np.where(kept == head, more, 0)


def standard_errors(expected: float, tokens: NDArray[np.int64]) -> float:
    error = tokens.std(ddof=1) / math.sqrt(tokens.size)
    return abs(tokens.mean() - expected) / error


SPECULATIVE = [(0.2, 1), (0.65, 9), (0.73, 8), (0.95, 20), (0.5, 3)]
HORIZONTAL = [
    ((0.73, 0.65), (5, 3)),
    ((0.9, 0.6, 0.2), (4, 5, 3)),
    ((0.5, 1.0), (2, 4)),
    ((0.3, 0.8), (1, 6)),
]
VERTICAL = [
    (0.6, 0.2, 2, 4),
    (0.8, 0.4, 4, 3),
    (0.9, 0.7, 3, 5),
    (1.0, 0.5, 3, 2),
    (0.7, 1.0, 2, 2),
    (0.85, 0.3, 7, 1),
]
BOTH = [
    (0.6, 0.3, 1, 2, 0.3, 10),
    (0.8, 0.4, 3, 2, 0.6, 4),
    (0.9, 0.0, 4, 3, 0.5, 5),
    (1.0, 0.5, 2, 3, 0.4, 6),
]


@pytest.mark.parametrize(("rate", "k"), SPECULATIVE)
def test_speculative_tokens_are_those_of_played_rounds(rate: float, k: int):
    tokens = play_horizontal([rate], [k], seed=1)
    assert standard_errors(theory.speculative_tokens(rate, k), tokens) < 4


@pytest.mark.parametrize(("rates", "lengths"), HORIZONTAL)
def test_horizontal_tokens_are_those_of_played_rounds(
    rates: tuple[float, ...], lengths: tuple[int, ...]
):
    tokens = play_horizontal(rates, lengths, seed=2)
    assert standard_errors(theory.horizontal_tokens(rates, lengths), tokens) < 4


@pytest.mark.parametrize(("rate", "inner_rate", "n", "k"), VERTICAL)
def test_vertical_tokens_are_those_of_played_rounds(
    rate: float, inner_rate: float, n: int, k: int
):
    tokens = play_cascade(rate, inner_rate, n, k, seed=3)
    assert standard_errors(theory.vertical_tokens(rate, inner_rate, n, k), tokens) < 4


@pytest.mark.parametrize(("rate", "inner_rate", "n", "k", "tail_rate", "tail"), BOTH)
def test_tokens_of_both_cascades_are_those_of_played_rounds(
    rate: float, inner_rate: float, n: int, k: int, tail_rate: float, tail: int
):
    tokens = play_cascade(rate, inner_rate, n, k, 4, tail_rate, tail)
    expected = theory.vertical_tokens(
        rate, inner_rate, n, k, tail_rate=tail_rate, tail=tail
    )
    assert standard_errors(expected, tokens) < 4


def vertical_without_own_token(a: float, a2: float, n: int, k: int) -> float:
    length = 1 + (a - 1) * (1 - (a2 * a) ** k) / (1 - a2 * a)
    return (1 - a * length**n) / (1 - a)


def vertical_of_mean_length(a: float, a2: float, n: int, k: int) -> float:
    length = n * (1 - a2 ** (k + 1)) / (1 - a2)
    return (1 - a ** (length + 1)) / (1 - a)


@pytest.mark.parametrize(
    "wrong",
    [
        vertical_without_own_token,
        vertical_of_mean_length,
        lambda a, a2, n, k: theory.vertical_tokens(a2, a, n, k),
        lambda a, a2, n, k: theory.vertical_tokens(a, a2, k, n),
        lambda a, a2, n, k: theory.vertical_tokens(a, a2, n, k) - 1,
        lambda a, a2, n, k: theory.vertical_tokens(a + 0.02, a2, n, k),
        lambda a, a2, n, k: theory.vertical_tokens(a, a2 + 0.04, n, k),
    ],
)
def test_played_rounds_refute_a_wrong_formula(wrong: Callable[..., float]):
    args = (0.85, 0.6, 3, 2)
    right = theory.vertical_tokens(*args)
    assert standard_errors(right, play_cascade(*args, seed=3)) < 4
    assert standard_errors(wrong(*args), play_cascade(*args, seed=3)) > 4


def test_played_rounds_refute_a_wrong_order_of_drafters():
    tokens = play_horizontal([0.73, 0.65], [5, 3], seed=2)
    swapped = theory.horizontal_tokens([0.65, 0.73], [3, 5])
    assert standard_errors(swapped, tokens) > 4


def test_played_rounds_refute_a_tail_that_counts_after_a_rejection():
    args = (0.8, 0.4, 3, 2)
    loose = theory.vertical_tokens(*args) + theory.speculative_tokens(0.6, 4) - 1
    assert standard_errors(loose, play_cascade(*args, 4, 0.6, 4)) > 4


# --- properties


@given(a=below_1, a2=rates, n=lengths, k=lengths, am=below_1, tail=lengths)
def test_sums_equal_the_papers_fractions(
    a: float, a2: float, n: int, k: int, am: float, tail: int
):
    phi = 1 + (a - 1) * (1 - (a2 * a) ** (k + 1)) / (1 - a2 * a)
    vertical = (1 - a * phi**n) / (1 - a)
    assert theory.phi(a, a2, k) == near(phi, abs=1e-12)
    assert theory.vertical_tokens(a, a2, n, k) == near(vertical)
    assert theory.speculative_tokens(a, k) == near((1 - a ** (k + 1)) / (1 - a))
    both = theory.vertical_tokens(a, a2, n, k, tail_rate=am, tail=tail)
    assert both == near(vertical + phi**n * am * (1 - am**tail) / (1 - am))


@given(x=rates, inner_rate=rates, k=lengths)
def test_phi_is_the_mean_of_x_to_the_tokens_of_a_review(
    x: float, inner_rate: float, k: int
):
    chance = [inner_rate**i * (1 - inner_rate) for i in range(k)] + [inner_rate**k]
    mean = sum(p * x ** (i + 1) for i, p in enumerate(chance))
    assert theory.phi(x, inner_rate, k) == near(mean, abs=1e-12)


@given(a=rates, a2=rates, n=lengths, c=costs, c2=costs)
def test_a_vertical_cascade_without_inner_tokens_is_speculative_decoding(
    a: float, a2: float, n: int, c: float, c2: float
):
    assert theory.vertical_tokens(a, a2, n, 0) == near(theory.speculative_tokens(a, n))
    ewif = theory.vertical_ewif(a, a2, n, 0, cost=c, inner_cost=c2)
    assert ewif == near(theory.speculative_ewif(a, n, c))


@given(a=rates, n=few, k=few)
def test_an_inner_drafter_that_is_always_or_never_right_gives_known_lengths(
    a: float, n: int, k: int
):
    always, never = (theory.vertical_tokens(a, a2, n, k) for a2 in (1, 0))
    assert always == near(theory.speculative_tokens(a, n * (k + 1)))
    assert never == near(theory.speculative_tokens(a, n))


@given(a=rates, k1=lengths, k2=lengths, c=costs)
def test_a_horizontal_cascade_of_equal_drafters_is_speculative_decoding(
    a: float, k1: int, k2: int, c: float
):
    alone = theory.horizontal_ewif([a], [k1], [c])
    assert alone == near(theory.speculative_ewif(a, k1, c))
    split = theory.horizontal_ewif([a, a], [k1, k2], [c, c])
    assert split == near(theory.speculative_ewif(a, k1 + k2, c))


@given(a1=rates, a2=below_1, k1=lengths, k2=lengths)
def test_two_drafters_are_as_in_the_paper_and_as_a_chain(
    a1: float, a2: float, k1: int, k2: int
):
    tokens = theory.horizontal_tokens([a1, a2], [k1, k2])
    assert tokens == near(theory.chain_tokens([a1] * k1 + [a2] * k2))
    head = theory.speculative_tokens(a1, k1)
    assert tokens == near(head + a1**k1 * a2 * (1 - a2**k2) / (1 - a2))


@given(a=rates, a2=rates, n=lengths, am=rates, tail=lengths, c=costs)
def test_both_cascades_without_inner_tokens_are_a_horizontal_cascade_with_mag(
    a: float, a2: float, n: int, am: float, tail: int, c: float
):
    both = theory.vertical_ewif(
        a, a2, n, 0, tail_rate=am, tail=tail, cost=c, inner_cost=1
    )
    assert both == near(theory.horizontal_ewif([a, am], [n, tail], [c, 0]))


@given(pair=st.tuples(rates, rates), other=rates, n=few, k=few, tail=few)
def test_a_better_drafter_gives_no_fewer_tokens(
    pair: tuple[float, float], other: float, n: int, k: int, tail: int
):
    def both(rate: float, tail_rate: float) -> float:
        return theory.vertical_tokens(rate, other, n, k, tail_rate=tail_rate, tail=tail)

    worse, better = sorted(pair)
    for tokens in (
        lambda rate: theory.speculative_tokens(rate, k),
        lambda rate: theory.horizontal_tokens([rate, other], [n, k]),
        lambda rate: theory.horizontal_tokens([other, rate], [n, k]),
        lambda rate: theory.vertical_tokens(rate, other, n, k),
        lambda rate: theory.vertical_tokens(other, rate, n, k),
        lambda rate: both(rate, other),
        lambda rate: both(other, rate),
    ):
        assert tokens(worse) <= tokens(better) + 1e-12


@given(a=rates, a2=rates, n=few, k=few)
def test_a_longer_draft_gives_no_fewer_tokens(a: float, a2: float, n: int, k: int):
    tokens = theory.vertical_tokens(a, a2, n, k)
    assert 1 <= tokens <= 1 + n * (k + 1)
    assert tokens <= theory.vertical_tokens(a, a2, n + 1, k) + 1e-12
    assert tokens <= theory.vertical_tokens(a, a2, n, k + 1) + 1e-12
    assert theory.speculative_tokens(a, k) <= theory.speculative_tokens(a, k + 1)


@given(a=rates, a2=rates, k=lengths, c=costs, c2=costs)
def test_drafting_nothing_gains_nothing(
    a: float, a2: float, k: int, c: float, c2: float
):
    assert theory.speculative_ewif(a, 0, c) == 1
    assert theory.horizontal_ewif([a, a2], [0, 0], [c, c2]) == 1
    assert theory.horizontal_ewif([], [], []) == 1
    assert theory.vertical_ewif(a, a2, 0, k, cost=c, inner_cost=c2) == 1


@given(n=few, k=few, a2=rates, am=rates, tail=few)
def test_a_rate_of_1_is_the_limit(n: int, k: int, a2: float, am: float, tail: int):
    inner = sum(a2**i for i in range(k + 1))
    run = sum(am**i for i in range(1, tail + 1))
    for rate in (1, 1 - 1e-15, 1 - 1e-13):
        assert theory.speculative_tokens(rate, k) == near(k + 1)
        assert theory.vertical_tokens(rate, a2, n, k) == near(1 + n * inner)
        both = theory.vertical_tokens(rate, a2, n, k, tail_rate=am, tail=tail)
        assert both == near(1 + n * inner + run)
    all_right = theory.vertical_tokens(1, 1, n, k, tail_rate=1, tail=tail)
    assert all_right == near(1 + n * (k + 1) + tail)


@given(a=rates, a2=rates, c=costs, c2=costs, limit=st.integers(0, 6))
def test_a_search_beats_every_plan_in_its_bounds(
    a: float, a2: float, c: float, c2: float, limit: int
):
    cost = {"cost": c, "inner_cost": c2}
    one = theory.best_speculative(a, c, limit=limit)
    across = theory.best_horizontal([a, a2], [c, c2], limit=limit)
    down = theory.best_vertical(a, a2, **cost, limit=limit)
    assert max(one.lengths + across.lengths + down.lengths) <= limit
    for i in range(limit + 1):
        assert one.ewif >= theory.speculative_ewif(a, i, c)
        for j in range(limit + 1):
            assert across.ewif >= theory.horizontal_ewif([a, a2], [i, j], [c, c2])
            assert down.ewif >= theory.vertical_ewif(a, a2, i, j, **cost)


def test_a_plan_that_gains_nothing_is_not_the_best():
    assert theory.best_speculative(0, 0) == ((0,), 1)
    assert theory.best_horizontal([0, 0, 0], [0, 0, 0], limit=2) == ((0, 0, 0), 1)
    assert theory.best_vertical(0, 0.5, cost=0, inner_cost=0) == ((0, 0), 1)


# --- SWI: a counted run


def test_walltime_improvement_counts_forwards_by_hand():
    forwards = {"xxl": 30, "base": 60, "small": 40, "mag": 500}
    costs = {"xxl": 11300, "base": 220, "small": 60}
    improvement = theory.walltime_improvement(100, forwards, costs, target="xxl")
    assert improvement == near(1_130_000 / 354_600)  # 339,000 + 13,200 + 2,400
    relative = {name: cost / 11300 for name, cost in costs.items()}
    same = theory.walltime_improvement(100, forwards, relative, target="xxl")
    assert same == near(improvement)


def test_walltime_improvement_of_plain_decoding_is_1():
    assert theory.walltime_improvement(7, {"target": 7}, {"target": 0.025}) == 1
    assert theory.walltime_improvement(0, {"target": 7}, {"target": 0.025}) == 0


def test_mag_has_the_cost_that_is_stated():
    forwards, costs = {"target": 2, "mag": 4}, {"target": 1.0, "mag": 0.5}
    assert theory.walltime_improvement(8, forwards, costs) == 2


def test_walltime_improvement_of_a_played_run_is_its_ewif():
    tokens = play_cascade(0.8, 0.4, 4, 3, seed=5)
    forwards = {"target": ROUNDS, "base": 4 * ROUNDS, "small": 12 * ROUNDS}
    costs = {"target": 20.0, "base": 2.0, "small": 0.5}
    improvement = theory.walltime_improvement(int(tokens.sum()), forwards, costs)
    ewif = theory.vertical_ewif(0.8, 0.4, 4, 3, cost=0.1, inner_cost=0.025)
    round_cost = 1 + 4 * 0.1 + 12 * 0.025
    assert improvement * round_cost == near(tokens.mean())
    assert standard_errors(ewif * round_cost, tokens) < 4


# --- bad input


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, math.inf, "0.5", None])
def test_a_bad_rate_is_refused(bad: float):
    calls: list[Callable[[], object]] = [
        lambda: theory.chain_tokens([0.5, bad]),
        lambda: theory.speculative_tokens(bad, 3),
        lambda: theory.horizontal_tokens([0.5, bad], [2, 0]),
        lambda: theory.phi(bad, 0.5, 3),
        lambda: theory.phi(0.5, bad, 3),
        lambda: theory.vertical_ewif(0.5, bad, 0, 0, cost=0, inner_cost=0),
        lambda: theory.vertical_tokens(0.5, 0.5, 1, 1, tail_rate=bad, tail=0),
        lambda: theory.best_speculative(bad, 0.1),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="a rate must be"):
            call()


@pytest.mark.parametrize("bad", [-1, 1.5, 2.0, math.nan, "3", None])
def test_a_bad_length_is_refused(bad: int):
    calls: list[Callable[[], object]] = [
        lambda: theory.speculative_tokens(0.5, bad),
        lambda: theory.horizontal_ewif([0.5, 0.5], [1, bad], [0, 0]),
        lambda: theory.vertical_ewif(0.5, 0.5, bad, 1, cost=0, inner_cost=0),
        lambda: theory.vertical_ewif(0.5, 0.5, 1, bad, cost=0, inner_cost=0),
        lambda: theory.vertical_tokens(0.5, 0.5, 1, 1, tail_rate=0.5, tail=bad),
        lambda: theory.best_speculative(0.5, 0.1, limit=bad),
        lambda: theory.walltime_improvement(bad, {"target": 1}, {"target": 1}),
        lambda: theory.walltime_improvement(1, {"target": bad}, {"target": 1}),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="must be whole and >= 0"):
            call()


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, "0.1", None])
def test_a_bad_cost_is_refused(bad: float):
    calls: list[Callable[[], object]] = [
        lambda: theory.speculative_ewif(0.5, 0, bad),
        lambda: theory.horizontal_ewif([0.5, 0.5], [1, 0], [0, bad]),
        lambda: theory.vertical_ewif(0.5, 0.5, 1, 0, cost=0, inner_cost=bad),
        lambda: theory.vertical_ewif(0.5, 0.5, 0, 1, cost=bad, inner_cost=0),
        lambda: theory.best_horizontal([0.5], [bad]),
        lambda: theory.walltime_improvement(1, {"target": 1}, {"target": bad}),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="a cost must be a finite number"):
            call()


def test_lists_of_different_sizes_are_refused():
    for call in (
        lambda: theory.horizontal_tokens([0.5], [1, 2]),
        lambda: theory.horizontal_ewif([0.5], [1], []),
        lambda: theory.best_horizontal([0.5, 0.4], [0.1]),
    ):
        with pytest.raises(ConfigError, match="one entry per drafter"):
            call()


def test_a_model_without_a_cost_is_named():
    forwards = {"target": 3, "base": 5}
    with pytest.raises(ConfigError, match="'base' has no cost"):
        theory.walltime_improvement(5, forwards, {"target": 1.0})
    with pytest.raises(ConfigError, match="'target' has no cost"):
        theory.walltime_improvement(5, forwards, {"base": 1.0})
    with pytest.raises(ConfigError, match="'xxl' has no cost"):
        theory.walltime_improvement(5, {"base": 5}, {"base": 1.0}, target="xxl")


@pytest.mark.parametrize(
    ("forwards", "cost"), [({"base": 1}, 1.0), ({"target": 0}, 1.0), ({"target": 1}, 0)]
)
def test_a_target_that_is_free_or_never_called_is_refused(
    forwards: dict[str, int], cost: float
):
    with pytest.raises(ConfigError, match="'target' must have forwards and a cost"):
        theory.walltime_improvement(1, forwards, {"target": cost, "base": 0.1})


def test_drafts_of_the_best_length_are_taken():
    times = {1: 1.0, 2: 1.2, 3: 1.4, 4: 4.0}
    by_hand = max(1.6 / (1.2 + 0.1), 2.0 / (1.4 + 0.2), 2.2 / (4.0 + 0.3))
    assert theory.draft_speedup([0.6, 0.4, 0.2], 0.1, times) == pytest.approx(by_hand)
    assert theory.draft_speedup([0.6, 0.4], 5.0, times) == 1.0
    assert theory.draft_speedup([0.9] * 9, 0.0, times) == pytest.approx(2.8 / 1.4)
