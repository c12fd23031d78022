"""Chains on hardware that is not here: closed forms and bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.costs.cost_model import WIDEST
from edgecs.errors import ConfigError
from edgecs_bench.hardware.machines import Drafter, Hardware
from edgecs_bench.simulation.chains import Chain
from edgecs_bench.simulation.replay import know, static
from edgecs_bench.simulation.replay_drafter import SimulatedWorker, Watch
from edgecs_bench.simulation.replay_options import TRACES
from edgecs_bench.simulation.simulation import Simulation, choose, halves, play
from edgecs_bench.simulation.traces import Trace, for_tuning, read_traces
from tests.bench.random_texts import texts
from tests.bench.simulated_hardware import DRAFTER, FLAT, STEEP, recording, spoken, took

FREE = Drafter("d", {1: 1e-9, WIDEST: 1e-9}, 0.0)


@given(trace=texts(60), seed=st.integers(0, 9))
@settings(max_examples=20)
def test_a_drafter_that_goes_on_answers_with_the_recorded_tokens(
    trace: Trace, seed: int
):
    """A round takes at least its call, and never less than a fifth of plain decoding.

    The tokens are checked by the replay, whose drafts are compared with the answer.
    """
    random = np.random.default_rng(seed)
    said = spoken(trace.output, lambda at: bool(random.random() < 0.8))
    plain = took("plain", said, FLAT)
    found = took("planner:drafter+mag:overlap", said, FLAT, DRAFTER)
    assert plain / (1 + WIDEST) <= found


def test_steps_beside_a_call_take_no_time_of_their_own():
    watch, done = Watch(), []
    worker = SimulatedWorker(watch)

    def step() -> bool:
        watch.pass_by(0.3)
        done.append(watch.now())
        return True

    worker.start(step)
    watch.pass_by(1.0)
    worker.finish()
    assert len(done) == 4  # the last one began before the call ended
    assert watch.now() == pytest.approx(1.2)
    worker.start(lambda: False)
    watch.pass_by(1.0)
    worker.finish()
    assert watch.now() == pytest.approx(2.2)


def test_plain_is_exactly_one():
    answers = tuple(
        spoken(range(100, 100 + n), lambda at: at % 3 > 0) for n in (2, 30, 50)
    )
    answers = tuple(
        replace(one, id=str(i), category=f"c{i % 2}") for i, one in enumerate(answers)
    )
    simulation = Simulation([recording(*answers)], [Chain.parse("plain")])
    for target in (FLAT, STEEP):
        machine = Hardware("x", "", "", (target,), (DRAFTER,))
        for row in simulation.rows(machine, target, by_category=True):
            assert row["speedup"] == row["mean_accept_len"] == 1.0
            assert row["drafted"] == 0.0
            assert row["simulated"] is True


@given(trace=texts(60), k=st.integers(1, 12))
@settings(max_examples=40)
def test_a_fixed_draft_of_max_gram_is_what_replay_counts(trace: Trace, k: int):
    for target in (FLAT, STEEP):
        expected = static(know(trace), target.curve, k, 1)
        assert took(f"mag:{k}", trace, target) == pytest.approx(expected)


@given(trace=texts(60), k=st.integers(1, 12))
@settings(max_examples=40)
def test_free_drafts_on_a_flat_curve_cost_no_rounds(trace: Trace, k: int):
    plain = took("plain", trace, FLAT)
    assert took(f"mag:{k}", trace, FLAT) <= plain * (1 + 1e-9)
    random = np.random.default_rng(k)
    said = spoken(trace.output, lambda at: bool(random.random() < 0.5))
    for label in (f"drafter:{k}", f"{k},4;0,3"):
        assert took(label, said, FLAT, FREE) <= plain * (1 + 1e-6)


@given(k=st.integers(1, 8), rounds=st.integers(1, 6), prompt=st.integers(1, 60))
def test_a_drafter_that_is_always_right_gives_the_closed_form(
    k: int, rounds: int, prompt: int
):
    output = range(1000, 1001 + rounds * (k + 1))
    trace = replace(spoken(output, lambda at: True), prompt=[*range(prompt)])
    step, (first, second) = DRAFTER.steps, DRAFTER.steps.times[:2]
    fed = prompt + 1
    reads = step.times[fed - 1] if fed <= WIDEST else fed * step.reading
    writing = reads + (rounds - 1) * second + rounds * (k - 1) * first
    calling = rounds * STEEP.curve.round(k + 1)
    spent = took(f"drafter:{k}", trace, STEEP)
    assert spent == pytest.approx(writing + calling)
    tallies = play(
        Chain.parse(f"drafter:{k}"), recording(trace), STEEP, {"d": DRAFTER.steps}
    )
    row = tallies["qa"].over(tallies["qa"])
    assert row["mean_accept_len"] == k + 1
    assert row["drafted"] == 1.0


def test_the_drafter_reviews_max_gram_in_a_cascade():
    output = [1000, 1001, 1002, 1003] * 6
    trace = spoken(output, lambda at: True)
    alone = took("drafter:6", trace, FLAT)
    assert took("6,0;0,6", trace, FLAT) < alone  # fewer steps for the same tokens
    assert took("6,0;0,0", trace, FLAT) == alone


def test_without_proposals_nothing_is_won():
    trace = spoken(range(1000, 1060), lambda at: True, size=0)
    for target in (FLAT, STEEP):
        plain = took("plain", trace, target)
        assert took("mag:5", trace, target) == plain
        assert took("drafter:4", trace, target) > plain
        assert took("planner:mag", trace, target) == plain
        assert plain <= took("planner:drafter+mag", trace, target) <= 1.05 * plain


def test_planners_learn_from_the_half_that_is_not_reported():
    (small,) = TRACES.glob("*-with-*.gz")
    known = read_traces(small)
    learnt, reported = halves(known)
    assert all(map(for_tuning, learnt))
    assert not any(map(for_tuning, reported))
    assert len(learnt) + len(reported) == len(known.traces)
    one = replace(known, traces=tuple(learnt[:1]))
    assert halves(one) == ([], learnt[:1])


@pytest.mark.parametrize(
    ("label", "matrix"),
    [
        ("mag:5", "5"),
        ("drafter:4", "4,0,0;0,0,0;0,0,0"),
        ("5,10;0,10", "5,10;0,10"),
        ("31,0;0,31", "31,0;0,31"),
        ("plain", "0"),
    ],
)
def test_chains_are_written_as_k_matrices(label: str, matrix: str):
    assert str(Chain.parse(label).matrix(2)) == matrix


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("", "invalid chain '': give plain"),
        ("mag", "invalid chain"),
        ("mag:0", "invalid chain"),
        ("mag:-1", "invalid chain"),
        ("mag:five", "invalid chain"),
        ("planner", "invalid chain"),
        ("mag:32", "drafts 32 tokens, but a call has room for 31"),
        ("drafter:99", "drafts 99 tokens"),
        ("20,20;0,1", "drafts 40 tokens"),
        ("4,8", "not square"),
        ("4,8;1,4", "below the diagonal"),
        ("a,b;c,d", "not a K matrix"),
    ],
)
def test_what_is_no_chain_is_refused(label: str, message: str):
    with pytest.raises(ConfigError, match=message):
        Chain.parse(label)


def test_all_chains_play_the_same_answers():
    with_one = recording(spoken(range(9), lambda at: True))
    without = recording(spoken([5] * 9, lambda at: True), drafters=())
    short = recording(spoken([5], lambda at: True))
    mag, both = Chain.parse("mag:5"), Chain.parse("planner:drafter+mag")
    assert choose([with_one, without, short], [mag], None) == [with_one, without]
    assert choose([with_one, without, short], [mag, both], None) == [with_one]
    with pytest.raises(ConfigError, match="no drafter"):
        choose([without], [both], None)
    with pytest.raises(ConfigError, match="no answer of two tokens"):
        choose([short], [mag], None)
    many = replace(with_one, traces=with_one.traces * 5)
    assert len(choose([many], [mag], 2)[0].traces) == 2


def test_a_k_matrix_for_other_drafters_is_refused():
    chain = Chain.parse("1,1,1;0,1,1;0,0,1")
    with pytest.raises(ConfigError, match="3 rows but there are 2 drafters"):
        play(chain, recording(spoken(range(9), lambda at: True)), FLAT, {})
