"""Chains that win on their merits, whatever the pace of the machine."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.core.context import Tokens
from edgecs.testing.fakes import Endless, TableModel
from edgecs.tuning.comparison import (
    MAG,
    PLAIN,
    Chain,
    Run,
    Trial,
    chains,
    choose,
    compare,
    overlap_gains,
    verdict,
    with_overlap,
)
from edgecs.tuning.estimate import expected
from tests.tuning.tuning_fakes import times, tuned_table


class Machine:
    """Answers at the speeds it is told, at a pace that it is told.

    speeds: of chains, relative to plain decoding, by kind. pace: by number of answer.
    """

    def __init__(
        self,
        speeds: dict[Chain, dict[str, float]],
        pace: Callable[[int], float] = lambda i: 1.0,
    ) -> None:
        self.played: list[Chain] = []
        self._speeds, self._pace = speeds, pace
        self.kinds = list(next(iter(speeds.values())))

    @property
    def prompts(self) -> dict[str, Tokens]:
        return {k: np.array([i], dtype=np.int32) for i, k in enumerate(self.kinds)}

    def play(self, chain: Chain, prompt: Tokens) -> Run:
        self.played.append(chain)
        speed = self._speeds.get(chain, {}).get(self.kinds[int(prompt[0])], 1.0)
        return Run(25.0 * speed * self._pace(len(self.played)), [1] * 20)


BIG, BOTH = Chain(("big",), False), Chain(("big",), True)
SPEEDS = {
    MAG: {"code": 1.3, "question": 1.0},
    BIG: {"code": 1.1, "question": 1.1},
    BOTH: {"code": 1.6, "question": 1.12},
}


@pytest.mark.parametrize(
    "pace",
    [
        lambda i: 1.0,
        lambda i: 1 - 0.02 * i,  # hot at the end
        lambda i: 0.6 if i > 6 else 1.0,  # a neighbour that comes and stays
    ],
)
def test_ratios_do_not_depend_on_the_pace_of_the_machine(pace: Callable[[int], float]):
    machine = Machine(SPEEDS, pace)
    found = compare(list(SPEEDS), machine.prompts, machine.play)
    for trial in found.trials:
        assert trial.ratios == pytest.approx(SPEEDS[trial.chain], 0.01)
    assert choose(found.trials).chain == BOTH
    for (before, chain), (_, after) in itertools.pairwise(
        itertools.pairwise(machine.played)
    ):
        assert chain == PLAIN or (before, after) == (PLAIN, PLAIN)


def test_a_ratio_over_a_change_of_pace_is_thrown_away():
    steady = Machine(SPEEDS)
    assert compare(list(SPEEDS), steady.prompts, steady.play).discarded == 0
    machine = Machine(SPEEDS, lambda i: 1.0 if i < 4 else 0.5)
    found = compare(list(SPEEDS), machine.prompts, machine.play)
    assert (found.discarded, found.unsure) == (1, 0)
    restless = Machine(SPEEDS, lambda i: 1.0 if i % 4 < 2 else 0.5)
    assert compare([MAG], restless.prompts, restless.play).unsure == 2


def test_one_unlucky_answer_is_asked_for_again():
    unlucky = Machine(SPEEDS, lambda i: 0.7 if i == 2 else 1.0)
    found = compare([MAG], unlucky.prompts, unlucky.play)
    assert unlucky.played.count(MAG) == 3
    assert found.trials[0].ratios["code"] == pytest.approx((1.3 * 0.7 + 1.3) / 2)
    slow = Machine({MAG: {"code": 0.9}})
    assert compare([MAG], slow.prompts, slow.play).trials[0].ratios == {"code": 0.9}
    assert slow.played.count(MAG) == 3


class Terse(Endless):
    """Ends every answer with its second token."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = frozenset(range(50))


def test_answers_of_a_few_tokens_do_not_count():
    tuned = tuned_table(
        SpeculationProfile(TableModel(50, n_ctx=300)), tokenizer=Terse()
    )
    (trial,) = tuned.compared.trials
    assert (trial.ratios, trial.speedup, trial.mean) == ({}, None, 0.0)
    assert tuned.chosen is trial
    assert "not measured" in tuned.verdict(trial)
    assert tuned.table()[0]["measured"] is None


def test_a_chain_that_does_harm_is_not_chosen():
    mag = Trial(MAG, {"code": 1.1, "question": 1.0})
    harmful = Trial(BOTH, {"code": 2.0, "question": 0.96})
    assert choose([mag, harmful]) is mag
    assert verdict(mag, mag) == "chosen"
    assert verdict(harmful, mag) == "0.96 of plain decoding on a question task"
    noisy = Trial(BOTH, {"code": 2.0, "question": 0.97})
    assert choose([mag, noisy]) is noisy


def test_max_gram_stays_where_nothing_is_faster():
    mag = Trial(MAG, {"code": 0.9, "question": 1.0})
    level = Trial(BIG, {"code": 0.98, "question": 0.99})
    assert choose([mag, level]) is mag
    assert verdict(mag, mag).startswith("default")
    assert "no faster than plain decoding" in verdict(level, mag)


def test_a_drafter_must_bring_more_than_noise():
    mag, both = Trial(MAG, {"code": 1.30}), Trial(BOTH, {"code": 1.31})
    assert choose([mag, both]) is mag
    assert verdict(both, mag) == "1.31 on average, mag has 1.30 and is simpler"
    assert verdict(mag, both) == "1.30 on average, big <- mag has 1.31"
    assert choose([mag, Trial(BOTH, {"code": 1.34})]).chain == BOTH


@pytest.mark.parametrize(
    ("step", "right", "best"),
    [(0.05, 0.9, "small <- mag"), (0.9, 0.9, "mag"), (0.05, 0.1, "mag")],
)
def test_the_search_finds_the_chain_that_the_curves_make_best(step, right, best):
    curve = times(**{f"w{n}": 1 + 0.1 * (n - 1) for n in range(1, 33)})
    tried = chains(["small"])
    rates = {
        c: expected(curve, c.mag, [(step, right)][: len(c.drafters)]) for c in tried
    }
    speeds = {c: {"code": rate, "question": rate} for c, rate in rates.items()}
    machine = Machine(speeds, lambda i: 1 - 0.01 * i)
    found = compare(tried, machine.prompts, machine.play)
    assert choose(found.trials).chain.name == best


def test_chains_go_from_simple_to_nested():
    names = [chain.name for chain in chains(["big", "small"])]
    assert names[:3] == ["mag", "big", "big <- mag"]
    assert names[-1] == "big <- small <- mag"
    assert len(names) == len(set(names)) == 6
    assert [c.parts for c in chains([])] == [["mag"]]
    assert PLAIN.name == "plain"


def test_the_gain_of_working_ahead_is_that_over_the_same_chain():
    ahead = BOTH._replace(ahead=True)
    trials = [
        Trial(BOTH, {"code": 1.2, "question": 1.2}),
        Trial(ahead, {"code": 1.5, "question": 1.5}),
    ]
    assert overlap_gains(trials) == {"big": pytest.approx(1.25)}


def test_a_chain_that_is_slower_than_plain_decoding_somewhere_gains_nothing():
    ahead = BOTH._replace(ahead=True)
    trials = [
        Trial(BOTH, {"code": 1.0, "question": 1.0}),
        Trial(ahead, {"code": 3.0, "question": 0.8}),
    ]
    assert overlap_gains(trials) == {"big": 0.0}
    assert overlap_gains([Trial(BOTH, {"code": 1.0})]) == {}


def test_drafters_that_need_their_target_do_not_work_ahead():
    every = chains(["head", "big"])
    found = with_overlap(every, {"big"})
    assert [chain for chain in found if not chain.ahead] == every
    assert [chain.drafters for chain in found if chain.ahead] == [("big",)]
