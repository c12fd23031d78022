"""The tables of the documents: what they say of results written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgecs_bench.pages import audits, speed_details, speed_overview


def written(path: Path, fields: dict[str, Any]) -> Path:
    path.write_text(json.dumps(fields))
    return path


def category(name: str, plain: float | None) -> dict[str, Any]:
    return {
        "category": name,
        "prompts": 6,
        "tokens": 900,
        "plain": plain,
        "speculative": plain and 2 * plain,
        "speedup": plain and 2.0,
        "geomean": plain and 1.9,
        "interval": [1.5, 2.5] if plain else None,
        "spread": [1.0, 1.5, 2.0, 2.5, 3.0] if plain else None,
        "accepted": 3,
        "tested": 7,
        "mean_accept_len": 1.5,
        "tiers": {"strict": 0.75, "numeric": 0.25},
        "forks_per_1000": 1.25,
        "looping": 0.1,
        "prompts_without_loops": 5,
        "speedup_without_loops": None,
    }


def speed(path: Path, name: str, *rows: dict[str, Any]) -> Path:
    fields = {
        "model": f"{name}.gguf",
        "options": {"target": {"device": "CPU 9", "threads": 2}},
        "llama_over_plain": 1.02,
        "baseline": "llama.cpp",
        "speedup": {row["category"]: row["speedup"] for row in rows if row["speedup"]},
        "geomean": 1.9,
        "planner_us": 99.6,
        "others": 0.004,
        "categories": list(rows),
    }
    return written(path, fields)


def test_an_overview_has_a_row_for_each_model_and_a_column_for_each_category(
    tmp_path: Path,
):
    one = speed(tmp_path / "1", "one", category("qa", 10.4), category("mt_bench", 8.0))
    two = speed(tmp_path / "2", "two", category("qa", 20.0), category("rag", None))
    assert speed_overview([one, two]).splitlines() == [
        "| model | plain, tok/s | qa | mt bench | geometric mean |",
        "| --- | --- | --- | --- | --- |",
        "| one | 8-10 | 2.00 | 2.00 | **1.90** |",
        "| two | 20-20 | 2.00 | - | **1.90** |",
    ]


def test_details_say_what_was_measured_and_where(tmp_path: Path):
    file = speed(tmp_path / "1", "one", category("qa", 10.0), category("rag", None))
    text = speed_details([file])
    assert text.startswith("## one\n\nCPU 9, 2 threads. Baseline: llama.cpp; ")
    assert "1.020 of plain" in text
    assert "100 µs a round" in text
    head, _, qa, rag = text.splitlines()[-4:]
    assert head.count("|") == qa.count("|") == rag.count("|")
    assert qa.startswith("| qa | 6 | 900 | 10.0 | 20.0 | 2.00 | 1.50-2.50 |")
    assert rag.startswith("| rag | 6 | 900 | - | - | - |")


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
