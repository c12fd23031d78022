"""Recording what drafters propose, to be replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Choose, LanguageModel, score_one
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import load, load_drafter
from edgecs.sampling.chain import chooser, greedy
from edgecs.sampling.settings import Sampling
from edgecs.testing.fakes import TableModel, write_random_gguf
from edgecs_bench import record as record_module
from edgecs_bench.record import Asked
from edgecs_bench.simulation.replay_drafter import Recorded, Watch
from edgecs_bench.simulation.traces import Recording, Trace, read_traces
from tests.planning.timed_models import Near, Timed


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
