"""Cost curves to replay on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from edgecs.costs.cost_model import WIDEST
from edgecs_bench.hardware.curves import curve, read_curves


def test_a_curve_goes_through_its_points_and_on():
    made = curve("x", 10.0, {1: 1.0, 3: 2.0, 5: 2.2}, 0.5)
    assert made.times[:6] == pytest.approx([10.0, 15.0, 20.0, 21.0, 22.0, 23.0])
    assert made.round(3) == 20.5
    assert made.times.shape == (WIDEST,)
    falling = curve("x", 10.0, {1: 1.0, 3: 2.0, 5: 1.5}, 0.0)
    assert falling.times[-1] > falling.times[4] == 15.0


def test_curves_are_read(tmp_path: Path):
    path = tmp_path / "c.json"
    fields = {"name": "mine", "ms": {"1": 8, "4": 14.0}, "overhead_ms": 0.4}
    path.write_text(json.dumps([fields, {**fields, "name": "other"}]))
    first, second = read_curves(path)
    assert (first.name, second.name, first.overhead) == ("mine", "other", 0.4)
    assert first.times[:5] == pytest.approx([8, 10, 12, 14, 16])


def good(**change: object) -> dict[str, object]:
    return {"name": "x", "ms": {"1": 8, "4": 14}, "overhead_ms": 0.4, **change}


@pytest.mark.parametrize(
    "nonsense",
    [
        {},
        [],
        3,
        ["x"],
        [[]],
        [{}],
        [good(ms={})],
        [good(ms={"1": 8})],
        [good(ms={"2": 8, "4": 9})],
        [good(ms={"1": 8, "four": 9})],
        [good(ms={"0": 8, "1": 9})],
        [good(ms={"1": 8, "99": 9})],
        [good(ms={"1": 8, "4": 0})],
        [good(ms={"1": -8, "4": 9})],
        [good(ms={"1": 8, "4": float("nan")})],
        [good(ms={"1": 8, "4": float("inf")})],
        [good(ms={"1": 8, "4": None})],
        [good(ms=[8, 9])],
        [good(overhead_ms=-1)],
        [good(overhead_ms="much")],
        [good(overhead_ms=float("nan"))],
        [good(), {"name": "y"}],
    ],
)
def test_curves_that_make_no_sense_are_refused(tmp_path: Path, nonsense: Any):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(nonsense))
    with pytest.raises(click.UsageError, match="c.json has no valid curves"):
        read_curves(path)


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_curves_that_are_no_json_are_refused(tmp_path: Path, text: str):
    path = tmp_path / "c.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(click.UsageError, match="has no valid curves"):
        read_curves(path)
    with pytest.raises(click.UsageError, match="has no valid curves"):
        read_curves(tmp_path / "none.json")
