"""No schedule beats the oracle on recorded answers."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.costs.cost_model import WIDEST
from edgecs.decoding.static_schedule import StaticSchedule
from edgecs.drafters.maxgram import MaxGram
from edgecs_bench.hardware.curves import CURVES, Curve, curve
from edgecs_bench.simulation import replay
from edgecs_bench.simulation.adversarial import KINDS
from edgecs_bench.simulation.replay import (
    LENGTHS,
    MATCHES,
    Known,
    Player,
    best_static,
    know,
    oracle,
    static,
)
from edgecs_bench.simulation.replay_drafter import Recorded
from edgecs_bench.simulation.replay_options import TRACES
from edgecs_bench.simulation.traces import (
    Recording,
    Trace,
    for_tuning,
    read_traces,
    write_traces,
)
from tests.bench.random_texts import texts
from tests.planning.timed_models import curves


@given(trace=texts(80), curve=curves())
@settings(max_examples=60)
def test_nothing_is_faster_than_the_oracle(trace: Trace, curve: Curve):
    known = know(trace)
    least = oracle(known, curve) * (1 - 1e-9)
    assert least <= (len(trace.output) - 1) * curve.round(1)
    assert least <= best_static([known], curve)
    player = Player(curve, [], sources=[MaxGram()])
    assert least <= player.play(trace)
    assert least <= player.play(trace)  # it is warm


@given(trace=texts(40), length=st.sampled_from(LENGTHS), match=st.sampled_from(MATCHES))
def test_what_is_known_is_what_max_gram_proposes(trace: Trace, length: int, match: int):
    known, mag = know(trace), MaxGram()
    for at, (right, matched) in enumerate(
        zip(known.copied, known.lengths, strict=True)
    ):
        context = Context(trace.prompt + trace.output[:at])
        copy = mag.propose(context, WIDEST - 1)
        assert (matched > 0) == (len(copy) > 0)
        rest = trace.output[at:]
        said = copy.tokens[: len(rest) - 1].tolist()
        assert said[:right] == rest[:right]
        assert right == len(said) or said[right] != rest[right]


def least(known: Known, curve: Curve, at: int = 1) -> float:
    """Every draft that there could be, one after the other."""
    size = len(known.copied)
    if at >= size:
        return 0.0
    steps = Recorded.TIMES
    last = size - at - 1  # of so many tokens a draft may be; the target says the last
    options = []
    for length in range(WIDEST):
        options.append((min(known.copied[at], length, last), length, 0.0))
    for right in known.stated:
        for n in range(1, min(right[at], last) + 1):
            writing = float(steps[1] + (n - 1) * steps[0])
            for length in range(n, WIDEST):
                more = min(known.copied[at + n], length - n, last - n)
                options.append((n + more, length, writing))
    return min(
        curve.round(1 + length) + writing + least(known, curve, at + emitted + 1)
        for emitted, length, writing in options
    )


@st.composite
def tiny_known(draw: st.DrawFn) -> Known:
    size = draw(st.integers(1, 5))
    rights = st.lists(st.integers(0, 4), min_size=size, max_size=size)
    stated = draw(st.lists(rights, max_size=1))
    return Known(draw(rights), [1] * size, stated)


@given(known=tiny_known(), curve=curves())
@settings(max_examples=25)
def test_the_oracle_is_the_best_of_all_plays(known: Known, curve: Curve):
    assert oracle(known, curve) == pytest.approx(least(known, curve))


def test_a_static_schedule_by_hand():
    known = Known([0, 3, 0, 0, 0, 1, 0], [0, 4, 0, 2, 1, 3, 0], [])
    made = curve("x", 1.0, {1: 10, 2: 15, 3: 18, 4: 20}, 1.0)
    # 2 drafted, both right; a match of 1 is too short; 1 drafted, for want of room.
    assert static(known, made, 2, 2) == 19 + 11 + 16
    # 3 drafted, all right, which takes it to the match of 3.
    assert static(known, made, 3, 2) == 21 + 16
    # 1 drafted and right; 1 drafted and wrong; nothing; 1 drafted and right.
    assert static(known, made, 1, 2) == 16 + 16 + 11 + 16
    assert best_static([known], made) == 37


@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.floats(0, 5))
def test_every_wider_call_is_followed_by_its_settling_once(said, settling: float):
    made = curve("x", 10.0, {1: 1.0, 2: 1.2, 32: 2.0}, 0.5)
    trace = Trace("1", "x", [1, 2], said, [0.0] * len(said))
    player = Player(made._replace(settling=settling), (), sources=[MaxGram()])
    player.schedule = StaticSchedule([MaxGram()], [3])
    took = player.play(trace) + player.play(trace)
    widths = player.widths
    half = len(widths) // 2
    assert widths[:half] == widths[half:]
    pairs = pairwise(widths[:half])
    after = 2 * sum(wide > 1 == single for wide, single in pairs)
    rounds = sum(made.round(width) for width in widths)
    assert took == pytest.approx(rounds + after * settling)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_hostile_drafters_are_as_they_are_called(kind):
    trace = Trace("", "", [1], list(range(100, 170)), [0.0] * 70)
    said = kind.spoil(trace).proposals[kind.name]
    assert len(said.tokens) == len(said.confidences) == 70
    for at, tokens in enumerate(said.tokens):
        right = [t == trace.output[at + i] for i, t in enumerate(tokens)]
        assert right == [kind.right(at + i) for i in range(len(tokens))]


SUMMARY = {
    "planner_over_plain",
    "planner_over_oracle",
    "planner_over_best_static",
    "worst_category",
    "worst_category_name",
    "cold_over_plain",
    "cold_over_oracle",
    "cold_worst_category",
    "oracle_over_plain",
    "hostile",
}


def test_the_bench_ends_with_json():
    (small,) = TRACES.glob("*-with-*.gz")
    command = [sys.executable, "-m", "edgecs_bench.simulation.replay"]
    command += ["--traces", str(small), "--curve", "flat"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"answers", "planner_us_per_round", "curves", "machine"}
    assert found["answers"] == sum(not for_tuning(t) for t in read_traces(small).traces)
    (flat,) = found["curves"].values()
    assert set(flat) == SUMMARY
    assert set(flat["hostile"]) == {kind.name for kind in KINDS}
    assert flat["oracle_over_plain"] >= flat["planner_over_plain"] > 1
    assert flat["planner_over_oracle"] <= 1
    assert min(flat["hostile"].values()) > 0.95


def test_a_curve_that_is_not_there_is_refused():
    done = CliRunner().invoke(replay.main, ["--curve", "steep"])
    assert done.exit_code == 2
    assert "no curve is named steep" in done.output
    assert "steep" not in {curve.name for curve in CURVES}


def test_traces_without_answers_to_report_on_are_refused(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    write_traces(path, Recording("t", (), 0.0, 1, 8, ()))
    done = CliRunner().invoke(replay.main, ["--traces", str(path), "--curve", "flat"])
    assert done.exit_code == 2
    assert "no answer in the reported half" in done.output
