"""What llama-bench printed, as times by width."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgecs.errors import ConfigError
from edgecs_bench.hardware.catalogue import find, read


def row(n_prompt: int, n_gen: int, rate: float, **more: object) -> dict[str, Any]:
    known = {"model_filename": "m/some-7B.gguf", "n_ubatch": 512, "n_depth": 0}
    sizes = {"model_n_params": 7_000_000_000, "model_size": 4_000_000_000}
    test = {"n_prompt": n_prompt, "n_gen": n_gen, "avg_ts": rate}
    return {**known, **sizes, **test, **more}


ROWS = [
    row(0, 128, 50.0, gpu_info="GPU"),
    row(2, 0, 80.0),
    row(4, 0, 100.0),
    row(1024, 0, 1000.0),
    row(512, 128, 1.0),  # mixes calls
    row(2, 0, 1.0, n_depth=4096),
    row(4, 0, 90.0),  # slower with other options
]


@pytest.mark.parametrize("lines", [False, True])
def test_llama_bench_gives_times_by_width(tmp_path: Path, lines: bool):
    path = tmp_path / "bench.json"
    text = "\n".join(map(json.dumps, ROWS)) if lines else json.dumps(ROWS)
    path.write_text(text)
    machine = find(str(path))
    (target,) = machine.targets
    assert target.model == "some-7B"
    assert target.ms == {1: 20.0, 2: 25.0, 4: 40.0, 512: 512.0}
    assert (target.parameters, target.bytes) == (7e9, 4e9)
    assert machine.note == "GPU"
    assert "widths 1, 2, 4, 512" in machine.describe()
    assert machine.drafter("some-7b", target).reading_ms == 1.0
    assert target.curve.times[7] == pytest.approx(40 + 4 * 472 / 508)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (ROWS[1:], "some-7B needs a tg row and a pp row"),
        (ROWS[:1], "some-7B needs a tg row and a pp row"),
        ([{"n_prompt": 1}], "'model_filename' is missing"),
        ([row(0, 1, 0.0), ROWS[1]], "avg_ts must be a positive number"),
        ([row(0, 1, float("nan")), ROWS[1]], "avg_ts must be a positive number"),
        (
            [row(0, 1, float("inf")), ROWS[1]],
            "ms of width 1 must be a number from 0.0001",
        ),
        ([row(-2, 0, 1.0), ROWS[0]], "ms of width -2 must be"),
        (
            [row(0, 1, 1.0, model_size="x"), ROWS[1]],
            "bytes must be a number from 1e-09 to 1e+15",
        ),
        ([row(0, 1, 1.0, n_depth=float("inf"))], "cannot convert float infinity"),
        ([{**ROWS[0], "n_gen": None}, ROWS[1]], "int()"),
    ],
)
def test_output_that_says_too_little_is_refused(tmp_path: Path, rows, reason: str):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(
        ConfigError, match="bench.json is neither a hardware"
    ) as refused:
        read(path)
    assert reason in str(refused.value)
