"""The tables of the documents: what they say of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from edgecs_bench.docs.curve_picture import cost_curves
from edgecs_bench.docs.tables import (
    audits,
    drafters_overview,
    fidelities,
    first_tokens,
    huge_pages,
    kernel_calls,
    over_llama,
    peers_overview,
    predictions,
    speed_overview,
)
from edgecs_bench.run.answers import Answer
from edgecs_bench.run.blocks import Done
from edgecs_bench.run.result import assemble
from tests.bench.test_statistics import answer


def written(path: Path, fields: dict[str, Any]) -> Path:
    path.write_text(json.dumps(fields))
    return path


def result(path: Path, name: str, answers: list[Answer]) -> Path:
    machine = {"id": "", "system": "", "processor": "CPU 9", "cores": 2}
    machine |= {"memory_gib": 1, "devices": [], "power": "unknown"}
    model = {"name": name, "fingerprint": "", "description": "", "parameters": None}
    build = dict.fromkeys(("llama_cpp_python", "system_info", "onnxruntime", "python"))
    options = {"n_ctx": 9, "threads": 2, "exact": "auto", "predict": 99, "seed": 1}
    about = {
        "command": [],
        "machine": machine,
        "build": build,
        "model": {**model, "bytes": None},
        "drafters": [],
        "options": {**options, "repeats": 1},
        "suite": {"names": [], "prompts": 2, "sha256": ""},
        "modes": [],
        "tests": [],
        "costs": None,
        "memory": {"peak_rss_mib": None},
        "energy": {"source": None},
    }
    return written(path, assemble([Done(0, (1.0, 1.0), 0.004, answers)], about))


def block(number: int, category: str, plain: float, fast: float) -> list[Answer]:
    """One prompt; llama.cpp's own loop is a quarter faster than plain decoding."""
    modes = (("plain", plain), ("llama", plain / 1.25), ("planner", fast))
    return [
        answer(mode, seconds, number, category=category, planner_us=99.6)
        for mode, seconds in modes
    ]


def test_an_overview_has_a_row_for_each_model_and_a_column_for_each_category(
    tmp_path: Path,
):
    one = [*block(0, "qa", 10.0, 4.0), *block(1, "mt_bench", 8.0, 4.0)]
    two = block(0, "qa", 5.0, 4.0)
    two = [a for a in two if a.mode != "llama"]
    files = [result(tmp_path / "1", "one", one), result(tmp_path / "2", "two", two)]
    head, _, *rows = speed_overview(files).splitlines()
    assert head == (
        "| model | processor | plain, tok/s | qa | mt bench | geometric mean (90 %) |"
    )
    # Over the faster one: 10 / 1.25 / 4 and 8 / 1.25 / 4.
    assert rows == [
        "| one | CPU 9 | 10-12 | 2.00 | 1.60 | **1.79** (1.79-1.79) |",
        "| two | CPU 9 | 20-20 | 1.25 | - | **1.25** (1.25-1.25) |",
    ]


def test_peers_have_a_row_for_each_mode_but_plain(tmp_path: Path):
    answers = [*block(0, "qa", 10.0, 4.0), *block(1, "mt_bench", 8.0, 4.0)]
    _, _, *rows = peers_overview([result(tmp_path / "1", "one", answers)]).splitlines()
    llama, planner = (row.strip("| ").split(" | ") for row in rows)
    assert llama[:3] == ["one", "llama", "1.25"]
    assert planner[:2] == ["one", "planner"]
    assert planner[2] == "2.24"  # of 2.5 and 2.0, each alone in its category
    assert planner[3] == "2.00 (mt bench)"
    assert planner[-1] == "0 of 2"


def test_a_peer_that_gave_no_answer_has_a_row_with_its_error(tmp_path: Path):
    path = result(tmp_path / "1", "one", block(0, "qa", 10.0, 4.0))
    fields = json.loads(path.read_text())
    fields["modes"].append({"name": "x/y", "about": "", "error": "no | wheel"})
    path.write_text(json.dumps(fields))
    head, _, *rows = peers_overview([path]).splitlines()
    assert rows[-1].startswith("| one | x/y | failed: no \\| wheel | - ")
    assert {row.count(" | ") for row in rows} == {head.count(" | ")}


def test_times_to_the_first_token_are_those_of_long_prompts(tmp_path: Path):
    answers = [*block(0, "qa", 10.0, 4.0), *block(1, "rag", 8.0, 4.0)]
    path = result(tmp_path / "1", "one", answers)
    fields = json.loads(path.read_text())
    waits = {"plain": 102.0, "llama": 100.0, "planner": 98.0}
    for one in fields["answers"]:
        one["prompt_tokens"] = 499 if one["category"] == "qa" else 500
        one["ttft_ms"] = waits[one["mode"]]
    path.write_text(json.dumps(fields))
    _, _, row = first_tokens([path]).splitlines()
    cells = row.strip("| ").split(" | ")
    assert cells[2:] == ["1", "1.020 (1.020-1.020)", "0.980 (0.980-0.980)"]
    assert len(first_tokens([path], least=501).splitlines()) == 2


def test_predictions_are_those_of_the_command(edgecs):
    results = Path(__file__).parents[2] / "bench" / "results"
    file = results / "2026-11-24-xeon-amx/predict-smollm2-135m-q4_1.json"
    traces = file.with_suffix(".jsonl.gz")
    text = edgecs("simulate", "--against", file, "--traces", traces).out
    head, _, *rows = predictions([file]).splitlines()
    assert head == "| target | chain | simulated | measured | error |"
    assert len(rows) == 3
    for row in rows:
        target, *cells = row.strip("| ").split(" | ")
        assert target == "SmolLM2-135M-Instruct.Q4_1"
        assert " ".join(cells) in " ".join(text.split())


def test_drafters_are_a_row_for_each_temperature(tmp_path: Path):
    row = {"drafter": "a", "right": [0.5, 0.25, 0.125], "drafts": 9, "temperature": 0.8}
    told = {
        "suites": ["x.jsonl", "y"],
        "bytes": {"a": 5 << 19},
        "rows": [{**row, "ms_a_token": 0.5}, {**row, "drafter": "b", "ms_a_token": 0}],
    }
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(told) + "\n")
    _, _, *rows = drafters_overview(path).splitlines()
    assert rows == [
        "| x.jsonl, y | 0.8 | a | 0.50 / 0.25 / 0.12 | 0.50 | 2.5 |",
        "| x.jsonl, y | 0.8 | b | 0.50 / 0.25 / 0.12 | - | - |",
    ]


def test_huge_pages_are_told_over_small_ones(tmp_path: Path):
    ms = {"huge pages": [8.0], "--no-huge-pages": [10.0], "--no-mmap": [4.0]}
    path = written(tmp_path / "huge.jsonl", {"model": "m", "depths": [64], "ms": ms})
    assert huge_pages(path).splitlines()[2] == "| m | 64 | 10.0 | 0.80 | 0.40 |"


def test_calls_of_kernels_are_told_for_both_depths(tmp_path: Path):
    ratios = {"1": 1.0, "4": 1.05, "8": 1.42}
    deep = {"64": ratios, "1500": {**ratios, "4": 1.1}}
    told = {
        "model": "m",
        "kernels": "avx2",
        "ms": {"64": {}, "1500": {}},
        "plain_over_llama": {"64": 1.5, "1500": 1.25},
        "ratio": deep,
        "llama_ratio": {"64": {"4": 2.0, "8": 4.0}, "1500": {"4": 2.0, "8": 3.0}},
        "prompt_over_llama": 2.51,
        "bandwidth": {"64": {"share": 0.9}, "1500": {"share": 0.8}},
        "identical_widths": {"64": [4, 8], "300": [4, 8]},
    }
    path = written(tmp_path / "kernels.jsonl", told)
    assert kernel_calls(path).splitlines()[2] == (
        "| m | avx2 | 1.50, 1.25 | 1.05, 1.10 | 1.42, 1.42 | 2.00, 2.00 | 4.00, 3.00 "
        "| 2.5 | 0.90 | all |"
    )
    told["identical_widths"]["300"] = [4]
    assert kernel_calls(written(path, told)).endswith("| 0.90 | 1 |\n")


def test_fidelity_stands_beside_that_of_llama_cpp(tmp_path: Path):
    one = {"tokens": 3336, "agreement": 0.968, "largest": 2.056}
    told = {
        "model": "m.gguf",
        "own": {**one, "perplexity_ratio": 0.99921},
        "llama_not_repacked": {**one, "agreement": 1.0, "perplexity_ratio": 1.0},
    }
    path = written(tmp_path / "fidelity.jsonl", told)
    assert fidelities(path).splitlines()[2] == (
        "| m | 3,336 | 96.8% | 100.0% | 0.9992 | 1.0000 | 2.06 | 2.06 |"
    )


def test_speeds_over_llama_cpp_have_its_loop_below(tmp_path: Path):
    answers = [*block(0, "qa", 4.0, 2.0), *block(1, "math", 4.0, 4.0)]
    line = over_llama([result(tmp_path / "a.json", "m", answers)]).splitlines()[2]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[0] == "m"
    assert cells[2] == "0.80"  # llama.cpp's loop is a quarter faster than plain
    assert cells[4:6] == ["1.60", "0.80"]
    assert cells[3] == "**1.13**"  # the geometric mean


def test_audits_count_forks_by_tier(tmp_path: Path):
    runs = [
        {
            "answers": 4,
            "identical": 4 - len(forks),
            "tokens_by_tier": {"numeric": 300, "strict": 100},
            "forks": [{"tier": tier} for tier in forks],
        }
        for forks in (["numeric"], ["numeric", "numeric"])
    ]
    fields = {
        "model": "one.gguf",
        "exact": "auto",
        "options": {"type_k": "f16"},
        "sampling": {"temperature": 0.8},
        "runs": runs,
        "strict_broken": False,
    }
    (row,) = audits([written(tmp_path / "a", fields)]).splitlines()[2:]
    assert row == (
        "| one | auto | f16 | 0.8 | 5 of 8 | 800 | numeric 5.00, strict 0.00 | no |"
    )


def test_the_picture_of_cost_curves_has_every_curve(tmp_path: Path):
    path = result(tmp_path / "1", "one", block(0, "qa", 10.0, 4.0))
    fields = json.loads(path.read_text())
    fields["costs"] = {"depth": 0, "drafters": {}, "ms": {"1": 2, "16": 8, "32": 99}}
    path.write_text(json.dumps(fields))
    root = ElementTree.fromstring(cost_curves({"flat": path, "other": path}))
    (line, _) = (one for one in root if one.get("stroke-width") == "2.5")
    # 16 tokens cost four times as much as one: half of what is shown.
    assert line.get("d") == "M50.0 230.0 L450.0 140.0"
    texts = [one.text for one in root if one.text]
    assert texts[-2:] == ["flat", "other"]
