"""Hardware that is not here: rooflines, profiles, files that lie."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.costs.cost_model import WIDEST
from edgecs.errors import ConfigError
from edgecs_bench.hardware.catalogue import FORMAT, PROFILES, export, find, read
from edgecs_bench.hardware.machines import (
    Deep,
    Drafter,
    Hardware,
    Roofline,
    Size,
    Target,
)
from tests.bench.simulated_hardware import DRAFTER, FLAT, STEEP, spoken, took

seconds = st.floats(0.001, 1e4)


@given(
    size=st.sampled_from(["1.5B-q4", "7B-Q8", "14b-f16", "135M-5.5"]),
    slow=st.floats(1, 500),
    more=st.floats(1, 10),
    tflops=st.floats(0.1, 100),
)
def test_a_roofline_is_monotone(size: str, slow: float, more: float, tflops: float):
    model = Size.parse(size)
    here = Roofline(slow, tflops, 0.1).target(model).ms
    wider = Roofline(slow * more, tflops, 0.1).target(model).ms
    faster = Roofline(slow, tflops * more, 0.1).target(model).ms
    assert list(here) == list(range(1, WIDEST + 1))
    assert sorted(here.values()) == list(here.values())
    assert all(wider[n] <= here[n] >= faster[n] for n in here)


def test_more_bandwidth_never_makes_plain_decoding_slower():
    trace = spoken(range(100, 140), lambda at: True)
    size = Size.parse("7B-q4")
    spent = [
        took("plain", trace, Roofline(gb, 3.0).target(size)) for gb in (20, 50, 100)
    ]
    assert spent == sorted(spent, reverse=True)


def test_a_roofline_by_hand():
    line = Roofline(100.0, 1.0, launch_ms=0.5)
    size = Size.parse("2B-8")  # 2 GB, 4 GFLOP a token
    assert line.ms(size, 1) == 20.5
    assert line.ms(size, 5) == 20.5
    assert line.ms(size, 10) == 40.5
    assert line.drafter("d", size).reading_ms == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(
    "text", ["7B", "7-q4", "B-q4", "0B-q4", "7B-q9", "7B-0", "", "0.9M-q4", "10001B-q4"]
)
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(ConfigError, match="is not a model size"):
        Size.parse(text)


@pytest.mark.parametrize(
    ("name", "parameters", "bits"),
    [
        ("qwen2.5-coder-0.5b-instruct-q4_k_m", 0.5e9, 4.5),
        ("SmolLM2-135M-Instruct.Q8_0", 135e6, 8.5),
        ("llama-3.2-1B", 1e9, 16),
    ],
)
def test_names_of_drafters_tell_their_size(name: str, parameters: float, bits: float):
    assert Size.of_name(name) == Size(name, parameters, bits)


def test_a_name_may_say_nothing():
    assert Size.of_name("qwen2.5-coder") is None


def test_times_of_a_drafter_are_found_in_order():
    line = Roofline(100.0, 10.0)
    given = Size.parse("1B-q4")
    known = Drafter("Some-1B-q8_0", {1: 3.0, 2: 4.0}, 0.5)
    measured = Hardware("x", "", "", (FLAT,), (known,))
    assert measured.drafter("some-1b-q8_0", FLAT) == known
    with pytest.raises(ConfigError, match="x has no times of the drafter other-1b"):
        measured.drafter("other-1b", FLAT)
    weighed = replace(FLAT, bytes=Size.parse("10B-q4").bytes)
    scaled = measured.drafter("other", weighed, given)
    assert scaled.ms == {1: pytest.approx(1.0), WIDEST: pytest.approx(1.0)}
    modelled = Hardware("y", "", "", roofline=line).drafter("other-1b-q4_0", FLAT)
    assert modelled == line.drafter("other-1b-q4_0", given)


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES.glob("*")))
def test_every_built_in_number_says_where_it_is_from(name: str):
    machine = find(name)
    assert machine.name == name
    assert machine.note
    assert machine.roofline is not None
    fields = set(vars(machine.roofline)) - {"sources"}
    assert set(machine.roofline.sources) == fields
    for source in machine.roofline.sources.values():
        assert "http" in source or "assumed" in source or "the same report" in source


@st.composite
def machines(draw: st.DrawFn) -> tuple[list[Target], list[Drafter]]:
    times = st.dictionaries(st.integers(2, 4096), seconds, min_size=1, max_size=4)
    names = st.text(st.characters(categories=["L", "N", "P"]), max_size=9)
    optional = st.none() | seconds
    curves = st.builds(
        lambda single, ms: dict(sorted({1: single, **ms}.items())), seconds, times
    )
    targets = st.builds(
        Target,
        names,
        curves,
        st.floats(0, 1e3),
        optional,
        optional,
        st.integers(0, 9999),
        st.floats(0, 1e3),
        st.just(()) | st.tuples(st.builds(Deep, st.integers(10_000, 1 << 20), curves)),
    )
    drafters = st.builds(Drafter, names, curves, st.floats(0, 1e3))
    some = st.lists(targets, min_size=1, max_size=2)
    return draw(some), draw(st.lists(drafters, max_size=2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hardware")


@given(found=machines(), note=st.text(st.characters(categories=["L"]), max_size=5))
def test_what_is_exported_is_read(folder: Path, found, note: str):
    targets, drafters = found
    path = folder / "x.json"
    path.write_text(json.dumps(export("here", targets, drafters, note=note)))
    expected = Hardware("here", note, "measured", tuple(targets), tuple(drafters))
    assert read(path) == expected


GOOD = export("here", [STEEP], [DRAFTER])
LINE = {
    "format": FORMAT,
    "name": "x",
    "source": "y",
    "roofline": {"gb_per_s": 100, "tflops": 1},
}


def bad_target(**change: object) -> dict[str, Any]:
    return {**GOOD, "targets": [{**GOOD["targets"][0], **change}]}


def bad_line(**change: object) -> dict[str, Any]:
    return {**LINE, "roofline": {**LINE["roofline"], **change}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "its format is not"),
        ([], "the file must be an object"),
        (3, "the file must be an object"),
        (None, "the file must be an object"),
        ({**GOOD, "format": "edgecs-hardware/2"}, "its format is not"),
        ({**GOOD, "name": 3}, "a name or note must be one line of text"),
        ({**GOOD, "name": "a\x1b[2J"}, "a name or note must be one line of text"),
        ({**GOOD, "targets": []}, "it needs targets or a roofline"),
        ({**GOOD, "targets": {}}, "targets and drafters must be lists"),
        ({**GOOD, "targets": [3]}, "a target must be an object"),
        ({**GOOD, "drafters": [{"name": "d"}]}, "'reading_ms' is missing"),
        ({**GOOD, "drafters": ["d"]}, "a drafter must be an object"),
        ({**GOOD, "roofline": LINE["roofline"]}, "and not both"),
        (bad_target(ms={}), "ms needs width 1 and another width"),
        (bad_target(ms={"1": 8}), "ms needs width 1 and another width"),
        (bad_target(ms={"2": 8, "4": 9}), "ms needs width 1 and another width"),
        (bad_target(ms={"1": 8, "0": 9}), "ms needs width 1 and another width"),
        (bad_target(ms={"1": 8, "9999999": 9}), "of at most 65536"),
        (bad_target(ms={"1": 8, "two": 9}), "invalid literal"),
        (
            bad_target(ms={"1": 8, "2": 0}),
            "ms of width 2 must be a number from 0.0001 to 1e+07, got 0",
        ),
        (
            bad_target(ms={"1": -8, "2": 9}),
            "ms of width 1 must be a number from 0.0001",
        ),
        (
            bad_target(ms={"1": float("nan"), "2": 9}),
            "must be a number from 0.0001 to 1e+07, got nan",
        ),
        (
            bad_target(ms={"1": float("inf"), "2": 9}),
            "must be a number from 0.0001 to 1e+07, got inf",
        ),
        (
            bad_target(ms={"1": 10**400, "2": 9}),
            "must be a number from 0.0001 to 1e+07, got 1000",
        ),
        (bad_target(ms={"1": 1e-5, "2": 9}), "must be a number from 0.0001 to 1e+07"),
        (
            bad_target(ms={"1": True, "2": 9}),
            "must be a number from 0.0001 to 1e+07, got True",
        ),
        (bad_target(ms=[8, 9]), "ms must be an object"),
        (bad_target(overhead_ms=-1), "overhead_ms must be a number from 0 to"),
        (bad_target(settling_ms=-1), "settling_ms must be a number from 0 to"),
        (bad_target(deep=3), "deep must be a list, got 3"),
        (bad_target(deep=[3]), "an entry of deep must be an object, got 3"),
        (
            bad_target(deep=[{"depth": 0, "ms": {}}]),
            "deep's depth must be a number from 1",
        ),
        (bad_target(deep=[{"depth": 9, "ms": {"1": 1}}]), "ms needs width 1"),
        (
            bad_target(deep=[{"depth": 9, "ms": {"1": 1, "2": 1}}] * 2),
            "deep's depth must be a number from 10 to",
        ),
        (
            bad_target(parameters="7B"),
            "parameters must be a number from 1e-09 to 1e+15",
        ),
        (bad_line(gb_per_s=0), "gb_per_s must be a number from 1e-09 to 1e+15"),
        (bad_line(tflops=None), "tflops must be a number from 1e-09 to 1e+15"),
        (bad_line(sources=[]), "sources must be an object"),
        ({**LINE, "roofline": 3}, "a roofline must be an object"),
        ({key: LINE[key] for key in ("format", "name", "source")}, "it needs targets"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(
    tmp_path: Path, fields: object, reason: str
):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(
        ConfigError, match="p.json is neither a hardware profile"
    ) as refused:
        read(path)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\x00\x01",
        b"[" * 100_000,
        b'{"a": ' * 50_000,
        b"\x1f\x8b\x08",
        json.dumps(GOOD).encode()[:-9],
        b"1" * 5000,
    ],
    ids=lambda text: repr(text[:9]),
)
def test_a_profile_that_is_no_json_is_refused(tmp_path: Path, text: bytes):
    path = tmp_path / "p.json"
    path.write_bytes(text)
    with pytest.raises(
        ConfigError, match="p.json is neither a hardware profile"
    ) as refused:
        read(path)
    assert len(str(refused.value)) < 500
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path)
    path.write_bytes(b" " * ((16 << 20) + 1))
    with pytest.raises(ConfigError, match="it has more than 16 MiB"):
        read(path)
