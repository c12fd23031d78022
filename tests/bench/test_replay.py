"""Traces come back as they were; no schedule beats the oracle on them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Choose, LanguageModel, score_one
from edgecs.costs.cost_model import WIDEST
from edgecs.decoding.static_schedule import Quotas
from edgecs.drafters.maxgram import MaxGram
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import load, load_drafter
from edgecs.sampling.chain import chooser, greedy
from edgecs.sampling.settings import Sampling
from edgecs.testing.fakes import TableModel, write_random_gguf
from edgecs_bench import record as record_module
from edgecs_bench.hardware.curves import CURVES, Curve, curve, read_curves
from edgecs_bench.record import Asked
from edgecs_bench.simulation import replay
from edgecs_bench.simulation.adversarial import KINDS
from edgecs_bench.simulation.replay import (
    LENGTHS,
    MATCHES,
    TRACES,
    Known,
    Player,
    best_static,
    know,
    oracle,
    static,
)
from edgecs_bench.simulation.replay_drafter import Recorded
from edgecs_bench.simulation.traces import (
    FORMAT,
    Proposals,
    Recording,
    Trace,
    for_tuning,
    read_traces,
    write_traces,
)
from tests.planning.test_planner import Near, Timed, Watch, curves

ids = st.integers(0, 200_000)
words = st.text(min_size=1, max_size=5)


@st.composite
def traces(draw: st.DrawFn, drafters: Sequence[str]) -> Trace:
    output = draw(st.lists(ids, max_size=4))
    n = len(output)
    gaps = draw(st.lists(st.integers(0, 9999), min_size=n, max_size=n))
    proposals = {}
    for name in drafters:
        tokens = [draw(st.lists(ids, max_size=3)) for _ in range(n)]
        said = [[draw(st.integers(0, 9999)) / 10000 for _ in one] for one in tokens]
        proposals[name] = Proposals(tokens, said)
    prompt = draw(st.lists(ids, min_size=1, max_size=4))
    gap = [gap / 1000 for gap in gaps]
    return Trace(draw(words), draw(words), prompt, output, gap, proposals)


@st.composite
def recordings(draw: st.DrawFn, least: int = 0) -> Recording:
    drafters = tuple(draw(st.lists(words, max_size=2, unique=True)))
    return Recording(
        draw(words),
        drafters,
        draw(st.sampled_from([0.0, 0.7])),
        draw(st.integers(0, 2**40)),
        draw(st.integers(1, 16)),
        tuple(draw(st.lists(traces(drafters), min_size=least, max_size=3))),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples of a property."""
    return tmp_path_factory.mktemp("traces")


HEAD = {
    "format": FORMAT,
    "target": "t",
    "drafters": ["d"],
    "temperature": 0,
    "seed": 1,
    "draft_max": 2,
}
LINE = {
    "id": "1",
    "category": "qa",
    "prompt": [1],
    "output": [2, 3],
    "gap": [0.5, 0.5],
    "proposals": {"d": {"tokens": [[2], [4]], "confidences": [[0.5], [0.5]]}},
}
HALVES = {  # whether an answer may be tuned on, by category and name
    ("writing", "81"): True,
    ("writing", "85"): False,
    ("qa", "321"): True,
    ("qa", "325"): False,
    ("humaneval", "HumanEval/8"): True,
    ("humaneval", "HumanEval/6"): False,
}


class TestTraces:
    @given(recording=recordings(), name=st.sampled_from(["t.jsonl", "t.jsonl.gz"]))
    def test_what_is_written_is_read(self, folder: Path, recording, name: str):
        write_traces(folder / name, recording)
        assert read_traces(folder / name) == recording
        assert [path.name for path in folder.glob(f"*{name}")] == [name]

    @given(recording=recordings(1), data=st.data())
    def test_a_file_that_was_cut_is_refused(self, folder: Path, recording, data):
        path = folder / "cut.jsonl"
        write_traces(path, recording)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole) - 2))
        path.write_bytes(whole[:cut])
        line = whole[:cut].count(b"\n") + 1
        if whole[cut : cut + 1] == b"\n" or (cut and whole[cut - 1 : cut] == b"\n"):
            found = read_traces(path).traces  # between two lines nothing is missed
            assert found == recording.traces[: len(found)]
        else:
            with pytest.raises(click.UsageError, match=f"cut.jsonl, line {line}: "):
                read_traces(path)

    @given(recording=recordings(1), data=st.data())
    def test_a_compressed_file_that_was_cut_is_refused(self, folder, recording, data):
        path = folder / "cut.jsonl.gz"
        write_traces(path, recording)
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(
            click.UsageError, match=r"cut.jsonl.gz, line \d+: not a trace"
        ):
            read_traces(path)

    @given(recording=recordings(1), data=st.data())
    def test_a_compressed_file_is_never_misread(self, folder, recording, data):
        path = folder / "bad.jsonl.gz"
        write_traces(path, recording)
        spoilt = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(spoilt) - 1))
        spoilt[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(spoilt)
        try:
            found = read_traces(path)
        except click.UsageError:
            return
        assert found == recording  # that byte said nothing

    def read(self, path: Path, *lines: object) -> Recording:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return read_traces(path)

    def test_the_format_is_the_documented_one(self, tmp_path: Path):
        found = self.read(tmp_path / "t.jsonl", HEAD, LINE)
        proposals = {"d": Proposals([[2], [4]], [[0.5], [0.5]])}
        trace = Trace("1", "qa", [1], [2, 3], [0.5, 0.5], proposals)
        assert found == Recording("t", ("d",), 0.0, 1, 2, (trace,))

    @pytest.mark.parametrize(
        "head", [{}, [], 3, "x", None, {**HEAD, "format": "edgecs-trace/2"}]
    )
    def test_another_format_is_refused(self, tmp_path: Path, head: object):
        with pytest.raises(click.UsageError, match="t.jsonl, line 1: not a trace"):
            self.read(tmp_path / "t.jsonl", head, LINE)

    @pytest.mark.parametrize("name", ["target", "drafters", "temperature", "seed"])
    def test_a_head_must_say_what_was_recorded(self, tmp_path: Path, name: str):
        head = {key: value for key, value in HEAD.items() if key != name}
        with pytest.raises(click.UsageError, match=f"not a trace: '{name}'"):
            self.read(tmp_path / "t.jsonl", head)

    @pytest.mark.parametrize(
        "change",
        [
            {"output": [2]},
            {"output": 2},
            {"gap": [0.5]},
            {"prompt": []},
            {"proposals": {}},
            {"proposals": []},
            {"proposals": {"d": {"tokens": [[2]], "confidences": [[0.5]]}}},
            {"proposals": {"d": {"tokens": [[2], [4, 5]], "confidences": [[1], [1]]}}},
            {"proposals": {"d": {"tokens": [[2], 4], "confidences": [[1], 1]}}},
        ],
    )
    def test_a_line_of_wrong_lengths_is_named(self, tmp_path: Path, change: dict):
        wrong = {**LINE, **change}
        with pytest.raises(click.UsageError, match="t.jsonl, line 3: not a trace"):
            self.read(tmp_path / "t.jsonl", HEAD, LINE, wrong)

    def test_a_file_that_is_not_there_is_refused(self, tmp_path: Path):
        with pytest.raises(
            click.UsageError, match="none.jsonl.gz, line 1: not a trace"
        ):
            read_traces(tmp_path / "none.jsonl.gz")

    def test_a_write_that_fails_leaves_the_old_file(self, tmp_path: Path):
        path = tmp_path / "t.jsonl"
        old = self.read(path, HEAD, LINE)
        broken = replace(old.traces[0], output=[object()])  # type: ignore[list-item]
        with pytest.raises(TypeError):
            write_traces(path, replace(old, traces=(broken, *old.traces)))
        assert read_traces(path) == old

    def test_the_halves_never_change(self):
        for (category, name), half in HALVES.items():
            assert for_tuning(Trace(name, category, [1], [], [])) == half
            assert for_tuning(Trace(name, category, [2, 3], [4], [0.5])) == half
        everything = [t for file in committed() for t in file.traces]
        assert sum(map(for_tuning, everything)) == pytest.approx(
            len(everything) / 2, rel=0.15
        )


@cache
def committed() -> list[Recording]:
    return [read_traces(file) for file in sorted(TRACES.glob("*.gz"))]


def test_committed_traces_are_there_for_all_benches():
    drafters = {name for recording in committed() for name in recording.drafters}
    assert len(drafters) >= 1
    assert sum(len(recording.traces) for recording in committed()) > 100


# Recording.


def drafted(
    model: LanguageModel, choose: Choose, trace: Trace, at: int, most: int
) -> list[tuple[int, float]]:
    """What a drafter writes at a position, token by token, as far as it is known."""
    before, said = trace.prompt + trace.output[:at], list[tuple[int, float]]()
    for i in range(most):
        tokens = [token for token, _ in said]
        if at + i >= len(trace.output) and tokens == trace.output[at:]:
            break
        context = Context(before + tokens)
        row = score_one(model, context).logits[0]
        token = choose(row, context.tokens)
        said.append((token, choose.confidence(row, context.tokens, token)))
    return said


@given(
    noise=st.sampled_from([0.0, 0.3, 2.0]),
    temperature=st.sampled_from([0.0, 1.0]),
    size=st.integers(1, 70),
    most=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_proposals_are_what_a_drafter_writes_token_by_token(
    noise: float, temperature: float, size: int, most: int, seed: int
):
    target = Timed(Watch(), 5, seed)
    drafter = Near(target, noise, seed)
    choose = chooser(Sampling(temperature=temperature, seed=seed), 5)
    output = target.alone([1, 2], size, choose)
    trace = Trace("", "", [1, 2], output, [0.0] * size)
    proposals = Asked(drafter, choose, trace).proposals(most)
    for at in range(size):
        expected = drafted(drafter, choose, trace, at, most)
        assert proposals.tokens[at] == [token for token, _ in expected]
        assert np.allclose(proposals.confidences[at], [p for _, p in expected])
    if not noise:
        assert proposals.tokens == [output[at : at + most] for at in range(size)]


Recorder = Callable[..., Recording]


@pytest.fixture
def recorder(tmp_path: Path, tiny_gguf: Path) -> Recorder:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        '{"text": "one", "category": "a"}\n{"text": "two", "category": "a"}\n'
        '{"text": "three", "category": "b"}\n'
    )

    def call(*arguments: object, fails: str = "") -> Recording:
        output = tmp_path / "out.jsonl.gz"
        words = ["-m", tiny_gguf, "--prompts", prompts, "-o", output, "-n", 20]
        words += ["-c", 512, "--draft-max", 4, *arguments]
        done = CliRunner().invoke(record_module.main, list(map(str, words)))
        if fails:
            assert done.exit_code
            assert fails in done.output
        else:
            assert done.exit_code == 0, done.output
        return read_traces(output)

    return call


def test_a_drafter_that_is_the_target_is_always_right(recorder, tiny_gguf: Path):
    recording = recorder("--draft", tiny_gguf)
    assert (recording.target, recording.drafters) == ("tiny", ("tiny",))
    assert [(t.category, t.id) for t in recording.traces] == [
        ("a", "1"),
        ("a", "2"),
        ("b", "3"),
    ]
    for trace in recording.traces:
        assert len(trace.output) == len(trace.gap) == 20
        assert min(trace.gap) >= 0
        said = trace.proposals["tiny"].tokens
        assert said == [trace.output[at : at + 4] for at in range(20)]


def test_off_the_path_a_real_drafter_is_asked(recorder, tiny_gguf, tmp_path: Path):
    other = write_random_gguf(tmp_path / "other.gguf", n_ctx=512, seed=1)
    recording = recorder("--draft", other, "--per-category", 1)
    options = LoadOptions(n_ctx=512)
    with load(tiny_gguf, options) as loaded, load_drafter(other, loaded) as drafter:
        for trace in recording.traces:
            for at in range(20):
                expected = drafted(drafter.model, greedy, trace, at, 4)
                said = trace.proposals["other"]
                assert said.tokens[at] == [token for token, _ in expected]
                sure = [p for _, p in expected]
                assert said.confidences[at] == pytest.approx(sure, abs=1e-3)


def test_an_interrupted_recording_goes_on(
    recorder, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
):
    listen, heard = record_module.listen, []

    def listen_once(session, prompt, *rest):
        if len(heard) == 1:
            raise KeyboardInterrupt
        heard.append(prompt.id)
        return listen(session, prompt, *rest)

    monkeypatch.setattr(record_module, "listen", listen_once)
    first = recorder(fails="Aborted")
    assert [trace.id for trace in first.traces] == ["1"]

    def listen_on(session, prompt, *rest):
        heard.append(prompt.id)
        return listen(session, prompt, *rest)

    monkeypatch.setattr(record_module, "listen", listen_on)
    whole = recorder()
    assert heard == ["1", "2", "3"]
    assert whole.traces[:1] == first.traces
    assert recorder() == whole
    assert len(heard) == 3


@pytest.mark.parametrize(
    "change", [("--temp", 0.5), ("--seed", 2), ("--draft-max", 3), ("--draft",)]
)
def test_a_file_that_was_recorded_otherwise_is_left_alone(
    recorder, tiny_gguf: Path, change: tuple[object, ...]
):
    before = recorder("--per-category", 1)
    change = (*change, tiny_gguf) if change == ("--draft",) else change
    assert recorder(*change, fails="was recorded with another target") == before


# Curves.


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


# Replay.


@st.composite
def texts(draw: st.DrawFn, most: int) -> Trace:
    """Of few words, so that some of it was there before."""
    vocab = draw(st.sampled_from([1, 2, 4, 1000]))
    random = np.random.default_rng(draw(st.integers(0, 9999)))
    n = draw(st.integers(2, most))
    output = random.integers(0, vocab, n).tolist()
    prompt = random.integers(0, vocab, draw(st.integers(1, 9))).tolist()
    return Trace("", "", prompt, output, [0.0] * n)


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
    player.schedule = Quotas([MaxGram()], [3])
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


def test_the_drafter_that_is_recorded_chooses_as_it_did():
    random = np.random.default_rng(0)
    target = TableModel(5, 3)
    output = target.greedy([1, 2], 40)
    drafter = Near(Timed(Watch(), 5, 3), 0.6, 7)
    trace = Trace("", "", [1, 2], output, [0.0] * 40)
    said = Asked(drafter, greedy, trace).proposals(8)
    trace = replace(trace, proposals={"near": said})
    watch = Watch()
    model = Recorded("near", watch)
    model.hear(trace)
    for at in range(1, 32):
        before = watch.now()
        length = int(random.integers(0, 4))
        gone = said.tokens[at][:length]  # a draft of its own, right or wrong
        context = Context([1, 2, *output[:at]]).with_tail(gone)
        row = score_one(model, context).logits[0]
        assert int(row[0]) == said.tokens[at][length]
        assert watch.now() > before
