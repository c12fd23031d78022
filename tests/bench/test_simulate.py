"""Chains on hardware that is not here: closed forms, bounds, files that lie."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.costs.cost_model import WIDEST
from edgecs.errors import ConfigError
from edgecs_bench.hardware.catalogue import (
    FORMAT,
    PROFILES,
    built_in,
    export,
    find,
    read,
)
from edgecs_bench.hardware.curves import curve
from edgecs_bench.hardware.machines import (
    Deep,
    Drafter,
    Hardware,
    Roofline,
    Size,
    Target,
)
from edgecs_bench.simulation.chains import CHAINS, Chain
from edgecs_bench.simulation.replay import TRACES, know, static
from edgecs_bench.simulation.simulation import Simulation, against, choose, halves, play
from edgecs_bench.simulation.traces import (
    Proposals,
    Recording,
    Trace,
    for_tuning,
    read_traces,
    write_traces,
)
from tests.bench.test_replay import texts
from tests.conftest import Outcome

FLAT = Target("flat", {1: 10.0, WIDEST: 10.0}, 0.0)
STEEP = Target("steep", {1: 10.0, 2: 20.0, WIDEST: 320.0}, 0.5)
DRAFTER = Drafter("d", {1: 1.0, 2: 1.5, 4: 2.0}, 0.25)
FREE = Drafter("d", {1: 1e-9, WIDEST: 1e-9}, 0.0)
seconds = st.floats(0.001, 1e4)


def recording(*traces: Trace, drafters: tuple[str, ...] = ("d",)) -> Recording:
    return Recording("t", drafters, 0.0, 1, 8, traces)


def spoken(output: Sequence[int], right: Callable[[int], bool], size: int = 8) -> Trace:
    """An answer whose drafter is right at some positions."""
    tokens = [
        [t if right(at + i) else 7 for i, t in enumerate(output[at : at + size])]
        for at in range(len(output))
    ]
    stated = [[0.9] * len(draft) for draft in tokens]
    proposals = {"d": Proposals(tokens, stated)}
    return Trace("1", "qa", [1], list(output), [0.0] * len(output), proposals)


def took(label: str, trace: Trace, target: Target, drafter: Drafter = DRAFTER) -> float:
    """Milliseconds of an answer."""
    chain, known = Chain.parse(label), recording(trace)
    (tally,) = play(chain, known, target, {"d": drafter.steps}).values()
    assert tally.tokens == len(trace.output) - 1
    return tally.ms


# Chains.


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
        ("", "'' is no chain: give plain"),
        ("mag", "is no chain"),
        ("mag:0", "is no chain"),
        ("mag:-1", "is no chain"),
        ("mag:five", "is no chain"),
        ("planner", "is no chain"),
        ("mag:32", "drafts 32 tokens: a call holds 31 of them"),
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


# Hardware.


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
    with pytest.raises(ConfigError, match="is no size of a model"):
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
        ([], "the file is an object"),
        (3, "the file is an object"),
        (None, "the file is an object"),
        ({**GOOD, "format": "edgecs-hardware/2"}, "its format is not"),
        ({**GOOD, "name": 3}, "a name or note is a line of text"),
        ({**GOOD, "name": "a\x1b[2J"}, "a name or note is a line of text"),
        ({**GOOD, "targets": []}, "it needs targets or a roofline"),
        ({**GOOD, "targets": {}}, "targets and drafters are lists"),
        ({**GOOD, "targets": [3]}, "a target is an object"),
        ({**GOOD, "drafters": [{"name": "d"}]}, "'reading_ms' is missing"),
        ({**GOOD, "drafters": ["d"]}, "a drafter is an object"),
        ({**GOOD, "roofline": LINE["roofline"]}, "and not both"),
        (bad_target(ms={}), "ms needs width 1 and another one"),
        (bad_target(ms={"1": 8}), "ms needs width 1 and another one"),
        (bad_target(ms={"2": 8, "4": 9}), "ms needs width 1 and another one"),
        (bad_target(ms={"1": 8, "0": 9}), "ms needs width 1 and another one"),
        (bad_target(ms={"1": 8, "9999999": 9}), "of at most 65536"),
        (bad_target(ms={"1": 8, "two": 9}), "invalid literal"),
        (
            bad_target(ms={"1": 8, "2": 0}),
            "ms of width 2 is a number of 0.0001 to 1e+07, got 0",
        ),
        (bad_target(ms={"1": -8, "2": 9}), "ms of width 1 is a number of 0.0001"),
        (
            bad_target(ms={"1": float("nan"), "2": 9}),
            "is a number of 0.0001 to 1e+07, got nan",
        ),
        (
            bad_target(ms={"1": float("inf"), "2": 9}),
            "is a number of 0.0001 to 1e+07, got inf",
        ),
        (
            bad_target(ms={"1": 10**400, "2": 9}),
            "is a number of 0.0001 to 1e+07, got 1000",
        ),
        (bad_target(ms={"1": 1e-5, "2": 9}), "is a number of 0.0001 to 1e+07"),
        (
            bad_target(ms={"1": True, "2": 9}),
            "is a number of 0.0001 to 1e+07, got True",
        ),
        (bad_target(ms=[8, 9]), "ms is an object"),
        (bad_target(overhead_ms=-1), "overhead_ms is a number of 0 to"),
        (bad_target(settling_ms=-1), "settling_ms is a number of 0 to"),
        (bad_target(deep=3), "deep is a list, got 3"),
        (bad_target(deep=[3]), "an entry of deep is an object, got 3"),
        (bad_target(deep=[{"depth": 0, "ms": {}}]), "deep's depth is a number of 1"),
        (bad_target(deep=[{"depth": 9, "ms": {"1": 1}}]), "ms needs width 1"),
        (
            bad_target(deep=[{"depth": 9, "ms": {"1": 1, "2": 1}}] * 2),
            "deep's depth is a number of 10 to",
        ),
        (bad_target(parameters="7B"), "parameters is a number of 1e-09 to 1e+15"),
        (bad_line(gb_per_s=0), "gb_per_s is a number of 1e-09 to 1e+15"),
        (bad_line(tflops=None), "tflops is a number of 1e-09 to 1e+15"),
        (bad_line(sources=[]), "sources is an object"),
        ({**LINE, "roofline": 3}, "a roofline is an object"),
        ({key: LINE[key] for key in ("format", "name", "source")}, "it needs targets"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(
    tmp_path: Path, fields: object, reason: str
):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match="p.json is no hardware profile") as refused:
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
    with pytest.raises(ConfigError, match="p.json is no hardware profile") as refused:
        read(path)
    assert len(str(refused.value)) < 500
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path)
    path.write_bytes(b" " * ((16 << 20) + 1))
    with pytest.raises(ConfigError, match="it has more than 16 MiB"):
        read(path)


# llama-bench.


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
        (ROWS[1:], "some-7B needs a row of tg and one of pp"),
        (ROWS[:1], "some-7B needs a row of tg and one of pp"),
        ([{"n_prompt": 1}], "'model_filename' is missing"),
        ([row(0, 1, 0.0), ROWS[1]], "avg_ts is a positive number"),
        ([row(0, 1, float("nan")), ROWS[1]], "avg_ts is a positive number"),
        ([row(0, 1, float("inf")), ROWS[1]], "ms of width 1 is a number of 0.0001"),
        ([row(-2, 0, 1.0), ROWS[0]], "ms of width -2 is"),
        (
            [row(0, 1, 1.0, model_size="x"), ROWS[1]],
            "bytes is a number of 1e-09 to 1e+15",
        ),
        ([row(0, 1, 1.0, n_depth=float("inf"))], "cannot convert float infinity"),
        ([{**ROWS[0], "n_gen": None}, ROWS[1]], "int()"),
    ],
)
def test_output_that_says_too_little_is_refused(tmp_path: Path, rows, reason: str):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(ConfigError, match="bench.json is no hardware") as refused:
        read(path)
    assert reason in str(refused.value)


# Predictions.


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
    with pytest.raises(ConfigError, match="is no chain"):
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
        ({"answers": []}, "no mode that drafts beside plain decoding"),
        ({"costs": None}, "costs is an object, got None"),
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


# The command.


@pytest.fixture
def simulate(edgecs: Callable[..., Outcome]) -> Callable[..., Outcome]:
    return lambda *arguments: edgecs("simulate", *arguments)


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
        (("--hardware", "quantum"), "'quantum' is no hardware: give laptop-gpu"),
        (
            ("--hardware", "0:1"),
            "0:1 is no roofline: gb_per_s is a number of 1e-09 to 1e+15",
        ),
        (("--hardware", "1.2.3:1"), "1.2.3:1 is no roofline: could not convert"),
        (("--hardware", "/"), "/ cannot be read"),
        (("--hardware", ""), "'' is no hardware"),
        (("--hardware", "x" * 5000), "is no hardware"),
        (("--target", "huge"), "'huge' is no size of a model"),
        (("--drafter", "-1B-q4"), "'-1B-q4' is no size of a model"),
        (("--chain", "fast"), "'fast' is no chain"),
        (("--chain", "1,1,1;0,1,1;0,0,1"), "3 rows but there are 2 drafters"),
        (("--limit", "0"), "0 is not in the range"),
        (("--traces", "none.jsonl"), "none.jsonl, line 1: no trace"),
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
    with pytest.raises(click.UsageError, match="t.jsonl, line 2: no trace"):
        read_traces(path)
    path.write_text("[" * 100_000)
    with pytest.raises(click.UsageError, match="t.jsonl, line 1: no trace"):
        read_traces(path)
