"""`edgecs simulate`: what it prints and refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
import pytest

from edgecs.costs.cost_model import WIDEST
from edgecs_bench.hardware.catalogue import built_in, export
from edgecs_bench.hardware.machines import Drafter
from edgecs_bench.simulation.chains import CHAINS, Chain
from edgecs_bench.simulation.traces import Trace, read_traces, write_traces
from tests.bench.simulated_hardware import FLAT, recording


def test_every_table_says_that_it_is_simulated(simulate):
    done = simulate("--limit", 6)
    assert (done.code, done.err) == (0, "")
    title, head, *rows = done.out.splitlines()
    assert title.startswith("simulated, not measured")
    assert "simulated speed-up" in head
    assert "simulated tokens/s" in head
    assert sum(row.split()[0] in built_in() for row in rows if row) >= 3 * len(CHAINS)
    assert done.out.count("every target accepts as often as the recorded one") == 1
    for name in built_in():
        assert f"\n{name}: " in done.out


def test_json_is_one_object_that_says_so_too(simulate):
    done = simulate("--hardware", "100:3:0.2", "--limit", 9, "--by-category", "--json")
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    assert report["simulated"] is True
    assert "recorded one" in report["assumptions"][0]
    assert {row["chain"] for row in report["results"]} == set(CHAINS)
    assert all(row["simulated"] is True for row in report["results"])
    whole = [row for row in report["results"] if row["category"] is None]
    assert len(whole) == len(CHAINS) < len(report["results"])
    parts = [row for row in report["results"] if row["chain"] == "plain"]
    assert sum(r["answers"] for r in parts) == 2 * whole[0]["answers"]
    assert report["recordings"][0]["answers"] == whole[0]["answers"]


def test_an_exported_profile_is_simulated(simulate, tmp_path: Path):
    path = tmp_path / "p.json"
    name = "qwen2.5-coder-0.5b-instruct-q4_k_m"
    quick = Drafter(name, {1: 1e-4, WIDEST: 1e-4}, 0.0)
    path.write_text(json.dumps(export("mine", [FLAT], [quick])))
    done = simulate("--hardware", path, "--limit", 4, "--json", "--chain", "drafter:4")
    (found,) = json.loads(done.out)["results"]
    assert (found["hardware"], found["target"]) == ("mine", "flat")
    assert found["speedup"] == pytest.approx(found["mean_accept_len"], rel=1e-3)
    refused = simulate("--hardware", path, "--target", "7B-q4")
    assert refused.code == 2
    assert "--target does not apply to mine, which has its own" in refused.err


def test_traces_of_ones_own_without_a_drafter(simulate, tmp_path: Path):
    path = tmp_path / "t.jsonl.gz"
    trace = Trace("1", "qa", [1, 2], [3, 4] * 20, [0.0] * 40)
    write_traces(path, recording(trace, drafters=()))
    done = simulate("--traces", path, "--hardware", "m-series", "--json")
    report = json.loads(done.out)
    neural = [chain for chain in CHAINS if Chain.parse(chain).neural]
    assert len(report["results"]) == len(CHAINS) - len(neural)
    assert report["results"][1]["speedup"] > 2
    refused = simulate("--traces", path, "--chain", "drafter:4")
    assert (refused.code, refused.out) == (2, "")
    assert "the traces have no drafter" in refused.err


def test_predicted_against_measured(simulate, tmp_path: Path):
    path = tmp_path / "r.json"
    fields = {
        "cost_ms": {"1": 10, "16": 10},
        "overhead_ms": 0,
        "speedups": {"plain": 1.0, "mag:3": 99},
    }
    path.write_text(json.dumps(fields))
    done = simulate("--against", path, "--limit", 4)
    assert done.code == 0
    assert "1 of 2 predictions are within 5%" in done.out
    assert "simulated" in done.out
    report = json.loads(simulate("--against", path, "--limit", 4, "--json").out)
    assert report["near"] == 1
    plain, mag = report["compared"]
    assert plain["error"] == 0
    assert mag["error"] == pytest.approx(mag["predicted"] / 99 - 1, abs=1e-3)
    path.write_text(json.dumps({**fields, "speedups": {"drafter:4": 2}}))
    assert "has no times of the drafter" in simulate("--against", path).err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--hardware", "quantum"), "unknown hardware 'quantum': give laptop-gpu"),
        (
            ("--hardware", "0:1"),
            "0:1 is not a roofline: gb_per_s must be a number from 1e-09 to 1e+15",
        ),
        (("--hardware", "1.2.3:1"), "1.2.3:1 is not a roofline: could not convert"),
        (("--hardware", "/"), "/ cannot be read"),
        (("--hardware", ""), "unknown hardware ''"),
        (("--hardware", "x" * 5000), "unknown hardware"),
        (("--target", "huge"), "'huge' is not a model size"),
        (("--drafter", "-1B-q4"), "'-1B-q4' is not a model size"),
        (("--chain", "fast"), "invalid chain 'fast'"),
        (("--chain", "1,1,1;0,1,1;0,0,1"), "3 rows but there are 2 drafters"),
        (("--limit", "0"), "must be a whole number of at least 1, got '0'"),
        (("--traces", "none.jsonl"), "none.jsonl, line 1: not a trace"),
        (("--against", "none.json"), "none.json cannot be read"),
        (("--against", "x", "--chain", "plain"), "--against sets hardware"),
    ],
)
def test_bad_input_is_one_sentence(simulate, arguments: Sequence[str], message: str):
    done = simulate(*arguments)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith("edgecs simulate: ")
    assert message in line


@pytest.mark.parametrize(
    "fields",
    [
        [],
        {},
        {"cost_ms": {"1": 1, "2": 1}, "overhead_ms": 0},
        {"cost_ms": [], "overhead_ms": 0, "speedups": {"plain": 1}},
        {"cost_ms": {"1": 1, "2": 1}, "overhead_ms": 0, "speedups": []},
        {"cost_ms": {"1": 1, "2": 1}, "overhead_ms": 0, "speedups": {"plain": 0}},
        {"cost_ms": {"1": 1, "2": 1}, "overhead_ms": float("nan"), "speedups": {}},
    ],
)
def test_a_result_that_makes_no_sense_is_refused(simulate, tmp_path: Path, fields):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(fields))
    done = simulate("--against", path)
    assert (done.code, done.out) == (2, "")
    assert "r.json is no result to predict: " in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"output": ["a", "b"]},
        {"output": [1 << 40, 2]},
        {"output": [-1, 2]},
        {"prompt": [1.5]},
        {"proposals": {"d": {"tokens": [["x"], []], "confidences": [[0.5], []]}}},
        {"proposals": {"d": {"tokens": [[1], []], "confidences": [[-1], []]}}},
        {"proposals": {"d": {"tokens": [[1], []], "confidences": [["x"], []]}}},
    ],
)
def test_traces_of_no_tokens_are_refused(tmp_path: Path, change: dict):
    path = tmp_path / "t.jsonl"
    head = {"format": "edgecs-trace/1", "target": "t", "drafters": ["d"]}
    head |= {"temperature": 0, "seed": 1, "draft_max": 2}
    line = {"id": "1", "category": "qa", "prompt": [1], "output": [2, 3]}
    said = {"tokens": [[1], []], "confidences": [[0.5], []]}
    line |= {"gap": [0.5, 0.5], "proposals": {"d": said}}
    path.write_text(json.dumps(head) + "\n" + json.dumps({**line, **change}))
    with pytest.raises(click.UsageError, match="t.jsonl, line 2: not a trace"):
        read_traces(path)
    path.write_text("[" * 100_000)
    with pytest.raises(click.UsageError, match="t.jsonl, line 1: not a trace"):
        read_traces(path)
