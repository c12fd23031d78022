"""Chains tried on fakes: they answer alike, and learn for themselves."""

from __future__ import annotations

import pytest

from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.costs.cost_model import CostModel
from edgecs.errors import Cancelled
from edgecs.planning.acceptance import stated
from edgecs.session.session import Session
from edgecs.testing.fakes import Endless, TableModel
from edgecs.tuning.comparison import MAG, PLAIN, Chain, chains
from edgecs.tuning.runner import ChainDrafter, Stage, agreeing
from tests.tuning.tuning_fakes import PROMPT, TILED, TimedModel


@pytest.fixture
def stage() -> Stage:
    """Fakes whose times are known, the drafter being cheap."""
    known = SpeculationProfile(TableModel(50))
    known.costs.measured(0, TILED)
    costs = CostModel()
    costs.measured(0, {1: 0.001, 32: 0.002})
    agreed = [True, True, True, False] * 20
    small = ChainDrafter("small", TableModel(50, seed=1), costs, agreed)
    return Stage(known, Endless(), [small], tokens=40)


SMALL = Chain(("small",), False)


def test_every_chain_gives_the_answer_of_plain_decoding(stage: Stage):
    answer = TableModel(50).greedy(PROMPT, 40)
    for chain in [PLAIN, *chains(["small"])]:
        assert stage.play(chain, PROMPT).tokens == answer


def test_a_chain_is_drafted_by_its_parts_alone(stage: Stage, monkeypatch):
    seen: list[list[str]] = []

    class Watched(Session):
        def close(self) -> None:
            seen.append(self.chain[1:])
            super().close()

    monkeypatch.setattr("edgecs.tuning.runner.Session", Watched)
    every = [PLAIN, *chains(["small"])]
    for chain in every:
        stage.play(chain, PROMPT)
    assert seen == [chain.parts for chain in every]


def test_chains_learn_for_themselves(stage: Stage):
    before = stage.known.calibration.state()
    assert before["stated"] == {}
    stage.play(SMALL, PROMPT)
    small = stage.learnt().state()
    assert list(small["stated"]) == ["small"]
    assert small["sources"] == before["sources"]
    stage.play(MAG, PROMPT)
    both = stage.learnt().state()
    assert both["sources"] != before["sources"]
    assert both["stated"] == small["stated"]
    assert stage.known.calibration.state() == before


def test_what_was_learnt_of_other_drafters_before_stays():
    known = SpeculationProfile(TableModel(50))
    known.costs.measured(0, TILED)
    known.calibration.drafter("absent").learn(stated([0.5], [None]), 1, False)
    before = known.calibration.state()["stated"]
    assert Stage(known, Endless()).learnt().state()["stated"] == before
    stage = Stage(known, Endless(), tokens=8)
    stage.play(MAG, PROMPT)
    assert stage.learnt().state()["stated"] == before


def test_a_chain_says_nothing_about_who_is_not_in_it():
    known = SpeculationProfile(TableModel(50))
    known.costs.measured(0, TILED)
    known.calibration.drafter("first").learn(stated([0.5], [None]), 1, False)
    before = known.calibration.state()["stated"]["first"]
    costs = CostModel()
    costs.measured(0, {1: 0.001, 32: 0.002})
    models = {"first": TableModel(50), "second": TableModel(50, seed=1)}
    drafters = [ChainDrafter(n, m, costs, [True] * 50) for n, m in models.items()]
    stage = Stage(known, Endless(), drafters, tokens=40)
    for name in models:
        stage.play(Chain((name,), False), PROMPT)
    assert stage.learnt().state()["stated"]["first"] != before


def test_trying_chains_stops_on_request(stage: Stage):
    stage.known.target.cancel.set()
    with pytest.raises(Cancelled):
        stage.play(MAG, PROMPT)


@pytest.mark.parametrize(("agreed", "writes"), [(True, True), (False, False)])
def test_a_drafter_writes_from_the_start_if_it_is_known_to_be_right(agreed, writes):
    known = SpeculationProfile(TableModel(50))
    known.costs.measured(0, TILED)
    costs = CostModel()
    costs.measured(0, {1: 0.001, 32: 0.002})
    twin = TimedModel(dict.fromkeys(range(1, 65), 0.001))
    stage = Stage(
        known, Endless(), [ChainDrafter("small", twin, costs, [agreed] * 50)], tokens=8
    )
    stage.play(SMALL, PROMPT)
    assert bool(twin.widths) == writes


def test_agreement_is_what_a_drafter_would_have_said():
    target, other = TableModel(50), TableModel(50, seed=1, sharpness=0.1)
    answer = target.greedy(PROMPT, 100)
    assert agreeing(target, target, PROMPT, answer) == [True] * 100
    texts = [[*PROMPT.tolist(), *answer[:i]] for i in range(100)]
    alone = [int(other.law(text).argmax()) for text in texts]
    same = [a == b for a, b in zip(alone, answer, strict=True)]
    assert agreeing(other, target, PROMPT, answer) == same
    short = TableModel(50, n_ctx=100)  # one call of 64 fits behind the prompt
    assert agreeing(short, target, PROMPT, answer) == [True] * 64
