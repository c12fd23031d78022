"""A planner looks away only where thinking is dear and finds nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgecs.calibration import Calibration
from edgecs.choice import greedy
from edgecs.context import Context
from edgecs.costs import CostModel
from edgecs.maxgram import MaxGram
from edgecs.planner import Planner
from edgecs.rest import FIRST, LONGEST, LOOKS, WORTH, Rest

SINGLE = 1.0


def rounds(rest: Rest, n: int, thought: float, found: bool = False) -> list[bool]:
    """Which of n rounds are spent asleep."""
    slept = []
    for _ in range(n):
        slept.append(rest.sleeps())
        if not slept[-1]:
            rest.looked(found, thought, SINGLE)
    return slept


def spans(slept: list[bool]) -> list[tuple[bool, int]]:
    found: list[tuple[bool, int]] = []
    for asleep in slept:
        if found and found[-1][0] == asleep:
            found[-1] = asleep, found[-1][1] + 1
        else:
            found.append((asleep, 1))
    return found


def test_it_looks_away_longer_and_longer_where_nothing_is_found():
    slept = rounds(Rest(), 400, 2 * WORTH)
    lengths = [FIRST, 2 * FIRST, LONGEST, LONGEST]
    expected = [part for n in lengths for part in ((False, LOOKS), (True, n))]
    assert spans(slept)[: len(expected)] == expected


@given(st.floats(0, WORTH), st.integers(1, 300))
def test_thoughts_that_cost_nothing_are_never_left_out(thought: float, n: int):
    assert not any(rounds(Rest(), n, thought))


@given(st.floats(0, 10), st.integers(1, 300))
def test_it_stays_awake_where_something_is_found(thought: float, n: int):
    assert not any(rounds(Rest(), n, thought, found=True))


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=300))
def test_it_never_looks_away_for_long(outcomes: list[tuple[bool, float]]):
    rest, slept = Rest(), []
    for found, thought in outcomes:
        slept.append(rest.sleeps())
        if not slept[-1]:
            rest.looked(found, thought, SINGLE)
    assert all(n <= LONGEST for asleep, n in spans(slept) if asleep)
    rest.wake()
    assert not rest.sleeps()


class Slow:
    """A clock that goes on by a while whenever it is looked at."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def asked(step: float, n: int = 200) -> int:
    """How often Max-Gram is asked in rounds on text in which nothing repeats itself."""
    costs, times = CostModel(), 0
    costs.observe(1, 0, SINGLE)
    planner = Planner(costs, Calibration(), MaxGram(), clock=Slow(step))
    propose = planner.copier.propose

    def counting(*arguments, **options):
        nonlocal times
        times += 1
        return propose(*arguments, **options)

    planner.copier.propose = counting
    context = Context([0])
    for token in range(1, n + 1):
        planner.draft(context, greedy, 20)
        context.append([token])
    return times


def test_a_planner_of_a_fast_target_looks_away_and_others_do_not():
    assert asked(WORTH / 10) == 200
    assert asked(3 * WORTH) < 80
