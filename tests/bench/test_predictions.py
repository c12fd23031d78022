"""Predictions beside what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgecs.costs.cost_model import WIDEST
from edgecs.errors import ConfigError
from edgecs_bench.hardware.curves import curve
from edgecs_bench.hardware.machines import Deep, Drafter
from edgecs_bench.simulation.simulation import against
from edgecs_bench.simulation.traces import Trace, write_traces
from tests.bench.simulated_hardware import STEEP, recording


def test_predictions_are_compared_with_what_was_measured():
    fields = {
        "cost_ms": {"1": 10, "2": 10, "4": 10},
        "overhead_ms": 0.5,
        "speedups": {"plain": 1.0, "mag:3": 2.0},
    }
    machine, speedups, prompts = against(fields, "here")
    assert prompts is None
    assert machine.targets[0].ms == {1: 10.0, 2: 10.0, 4: 10.0}
    assert machine.targets[0].settling_ms == 0
    settles, *_ = against({**fields, "settling_ms": 2}, "here")
    assert settles.targets[0].curve.settling == 2
    assert speedups == {"plain": 1.0, "mag:3": 2.0}
    with pytest.raises(ValueError, match="speedups is empty"):
        against({**fields, "speedups": {}}, "here")
    with pytest.raises(ConfigError, match="invalid chain"):
        against({**fields, "speedups": {"fast": 2}}, "here")


def bench_result(**change: Any) -> dict[str, Any]:
    """A result of `edgecs bench` as far as it is looked at."""
    ms = {"plain": 100.0, "planner": 80.0, "mag:3": 50.0, "d:4": 40.0}
    ms |= {"k:2,2;0,2": 25.0, "other:2": 10.0, "llama": 5.0, "peer/plain": 2.0}
    answers = [
        {
            "category": "qa",
            "id": str(number),
            "mode": mode,
            "temperature": temperature,
            "tokens": 9,
            "decode_ms": (1 + number) * spent * (1 + repeat),
        }
        for temperature in (0.0, 0.8)
        for repeat in (0, 1, 0)
        for mode, spent in ms.items()
        for number in range(3)
        if temperature == 0 or mode == "plain"
    ]
    answers = [a for a in answers if (a["mode"], a["id"]) != ("d:4", "2")]
    return {
        "format": "edgecs-bench/1",
        "drafters": [{"name": "d"}, {"name": "other"}],
        "answers": answers,
        "costs": {
            "ms": {"1": 10, "8": 12},
            "overhead_ms": 0.1,
            "settling_ms": 1.5,
            "depth": 128,
            "deep": [
                {"depth": 1024, "ms": {"1": 20, "8": 40}},
                {"depth": 2048, "ms": {"1": 20, "8": 60}},
            ],
            "drafters": {"d": {"ms": {"1": 1, "2": 1.5}, "reading_ms": 0.5}},
        },
        **change,
    }


def test_a_bench_is_predicted_from_its_own_costs():
    machine, speedups, prompts = against(bench_result(), "here")
    assert speedups == pytest.approx(
        {"planner:drafter+mag": 1.25, "mag:3": 2.0, "drafter:4": 2.5, "2,2;0,2": 4.0}
    )
    assert prompts == {"0", "1"}  # that all of them have answered
    (target,) = machine.targets
    assert (target.settling_ms, target.overhead_ms) == (1.5, 0.1)
    assert target.deep[0] == Deep(1024, {1: 20.0, 8: 40.0})
    assert target.curve.call(8, 1536) == pytest.approx(50)
    assert target.curve.call(8, 3072) == pytest.approx(80)
    assert target.curve.call(1, 3072) == pytest.approx(20)
    assert target.curve.call(1, 128) == pytest.approx(10)
    assert target.curve.call(8, 1024) == pytest.approx(40)
    assert target.curve.call(8, 576) == pytest.approx(26)
    assert target.curve.call(1, 512) == target.curve.call(1, 767) == pytest.approx(15)
    assert target.curve.call(1, 0) == pytest.approx(10)
    assert machine.drafters == (Drafter("d", {1: 1.0, 2: 1.5}, 0.5),)
    alone = against(bench_result(drafters=[]), "here")
    assert set(alone.speedups) == {"planner:mag", "mag:3", "2,2;0,2"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answers": []}, "no drafting mode besides plain decoding"),
        ({"costs": None}, "costs must be an object, got None"),
    ],
)
def test_a_bench_that_says_too_little_is_refused(change, reason: str):
    with pytest.raises(ValueError, match=reason):
        against(bench_result(**change), "here")


def test_only_what_was_measured_is_played_and_all_of_it(simulate, tmp_path: Path):
    traces = [
        Trace(str(n), "qa", [1, 2], [3, 4] * (n + 2), [0.0] * 2 * (n + 2))
        for n in range(5)
    ]
    result, said = tmp_path / "run.json", tmp_path / "run.jsonl.gz"
    fields = bench_result(drafters=[])
    fields["answers"] = [a for a in fields["answers"] if not a["mode"].startswith("k")]
    result.write_text(json.dumps(fields))
    write_traces(said, recording(*traces, drafters=()))
    done = simulate("--against", result, "--traces", said, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    (one,) = report["recordings"]
    assert one["answers"] == 3  # without a drafter the third prompt counts too
    assert {row["chain"] for row in report["compared"]} == {"planner:mag", "mag:3"}
    write_traces(said, recording(traces[4], drafters=()))
    refused = simulate("--against", result, "--traces", said)
    assert (refused.code, refused.out) == (2, "")
    assert "have none of the prompts that were measured" in refused.err


def test_the_curve_of_a_target_goes_through_its_times():
    expected = curve("x", 1.0, {1: 10, 2: 20, WIDEST: 320}, 0.5)
    assert STEEP.curve.times.tolist() == pytest.approx(expected.times.tolist())
    assert STEEP.curve.overhead == 0.5
