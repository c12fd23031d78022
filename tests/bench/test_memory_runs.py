"""Recording scenarios, replaying files of them, and running them for real."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from edgecs.core.context import Context
from edgecs.core.draft import Draft, Rows, Verdict
from edgecs.drafters.maxgram import MaxGram
from edgecs_bench.memory import __main__ as replay_module
from edgecs_bench.memory import record, rejections, scenarios, write_back
from edgecs_bench.memory.replay import LEVELS
from edgecs_bench.memory.scenarios import Place, Scenario
from edgecs_bench.memory.traces import Answer, read_answers
from edgecs_bench.simulation.replay_drafter import Watch
from tests.commands import Edgecs

SMALL = [
    Scenario("edit", "a", True, 8, [[["one", "two"], ["three"]]]),
    Scenario("edit", "b", False, 8, [[["four", "five"], ["four"]]]),
    Scenario("again", "c", False, 8, [[[f"six {n}"]] for n in range(11)]),
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (record, scenarios):
        monkeypatch.setattr(module, "read_scenarios", lambda: SMALL)


def recorded(tiny_gguf: Path, output: Path) -> list[Place]:
    arguments = ["-m", tiny_gguf, "-c", 512, "-t", 1, "-o", output]
    done = CliRunner().invoke(record.main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return [answer.place for answer in read_answers(output)[1]]


def test_an_interrupted_recording_goes_on_with_the_same_answers(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, parts = tmp_path / "whole.jsonl.gz", tmp_path / "parts.jsonl.gz"
    recorded(tiny_gguf, whole)
    monkeypatch.setattr(record, "read_scenarios", lambda: SMALL[:1])
    assert len(recorded(tiny_gguf, parts)) == 3
    monkeypatch.setattr(record, "read_scenarios", lambda: SMALL)
    assert len(recorded(tiny_gguf, parts)) == 3 + 3 + 11
    assert read_answers(parts) == read_answers(whole)
    _, said = read_answers(whole)
    for one in said:
        assert [ranks[0] for ranks in one.ranked] == one.output
    first, second, cleared, *_ = said
    assert len(cleared.prompt) < len(first.prompt) + 8 < len(second.prompt)


def test_what_is_said_after_wrong_tokens_is_recorded_and_written_back(
    tiny_gguf: Path, tmp_path: Path
):
    traces, file = tmp_path / "some.jsonl.gz", tmp_path / "rejections.jsonl.gz"
    recorded(tiny_gguf, traces)
    arguments = ["-m", tiny_gguf, "-c", 512, "-t", 1, "--most", 6, "-o", file, traces]
    done = CliRunner().invoke(rejections.main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    _, answers = read_answers(traces)
    found = rejections.read_rejections(file)
    assert sorted(found) == [*range(len(answers))]
    for number, said in found.items():
        output = answers[number].output
        assert len(said) == min(6, len(output))
        mag, context = MaxGram(), Context([*answers[number].prompt, output[0]])
        for at in range(1, len(said)):
            tokens = mag.continuation(context, rejections.DRAFTED)
            right = rejections.agreed(tokens, output[at:])
            assert len(said[at]) == len(tokens) - right
            context.append(output[at : at + 1])
    arguments = ["--traces", traces, "--rejections", file, "--curve", "flat"]
    done = CliRunner().invoke(write_back.main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["curves"]["flat"].keys() == {"tuning", "reported", "rows"}


@pytest.mark.parametrize("line", ["{}", '{"answer": 0, "said": [[-1]]}', "[1]"])
def test_a_broken_file_of_rejections_is_refused(tmp_path: Path, line: str):
    file = tmp_path / "broken.jsonl"
    file.write_text(f'{{"format": "{rejections.FORMAT}"}}\n{line}\n')
    with pytest.raises(click.UsageError, match="line 2"):
        rejections.read_rejections(file)


def test_written_back_tokens_are_those_after_rejected_ones():
    source = write_back.WriteBack(Watch())
    context, draft = Context([5, 1, 2, 3]), Draft.chain([4, 6, 7], "mag")
    answer = answer_of([5], [1, 2, 3, 4, 9])
    source.hear(answer, [[], [], [], [8, 9]])
    rows = Rows(np.empty((0, 0), np.float32), fed=4)
    source.observe(context, draft, rows, Verdict((0,), 9))
    assert source.continuation(Context([3, 4, 6]), 4) == [8]
    assert source.continuation(Context([1, 6, 7]), 4) == [9]
    assert source.rows == 2
    source.observe(context, Draft.chain([4, 6], "bigram"), rows, Verdict((), 9))
    assert source.rows == 2


def answer_of(prompt: list[int], output: list[int]) -> Answer:
    ranked = [[token] for token in output]
    return Answer("edit", "a", True, Place(0, 0, 0), prompt, output, ranked)


def test_the_last_line_has_what_the_stores_add(tiny_gguf: Path, tmp_path: Path):
    file = tmp_path / "some.jsonl.gz"
    recorded(tiny_gguf, file)
    arguments = ["--traces", str(file), "--curve", "flat"]
    done = CliRunner().invoke(replay_module.main, arguments)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result["curves"]["flat"]["levels"]) == set(LEVELS)
    assert set(result["second_turn_over_first"]["flat"]) == {"edit", "both"}
    assert result["eleventh_session_over_maxgram"]["flat"] > 0
    assert result["recycling_on_flat"] == result["curves"]["flat"]["recycling"]
    assert result["answers"] == 3 + 11


def test_traces_without_a_reported_half_are_refused(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "some.jsonl.gz"
    monkeypatch.setattr(record, "read_scenarios", lambda: SMALL[:1])
    recorded(tiny_gguf, file)
    done = CliRunner().invoke(replay_module.main, ["--traces", str(file)])
    assert done.exit_code == 2
    assert "reported half" in done.output


def test_all_ways_of_a_real_run_give_the_same_answers(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path
):
    output, journal = tmp_path / "real.json", tmp_path / "real.jsonl"
    ask = ["bench", "-m", tiny_gguf, "--memory", "-c", 512, "-t", 1, "-q"]
    ask += ["-o", output, "--resume", journal, "--scenario", "b", "--scenario", "c"]
    done = edgecs(*ask, "-F", "json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["speeds"]
    assert found["edit"]["on"]["identical"] == "3 of 3"
    assert found["again"]["off"]["identical"] == "11 of 11"
    assert {"first turn", "second turn", "same text, cleared"} < set(found)
    assert "eleventh session" in found
    result = json.loads(output.read_text())
    assert len(result["rows"]) == 3 * 14
    again = edgecs(*ask)
    assert again.code == 0, again.err
    assert "eleventh session" in again.out
    assert json.loads(output.read_text()) == result


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--memory", "--scenario", "z"], "z is not a scenario"),
        (["--scenario", "b"], "--scenario is for --memory"),
        (["--memory", "--draft", "x"], "leave --draft out"),
        (["--memory", "-F", "csv"], "--memory prints md or json"),
        (["--memory", "--mode", "plain"], "has prompts and ways of its own"),
        (["--memory", "--cascade-sweep"], "has prompts and ways of its own"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    edgecs: Edgecs, tiny_gguf: Path, more: list[str], said: str
):
    done = edgecs("bench", "-m", tiny_gguf, *more)
    assert done.code == 2
    assert said in done.err
    assert "-m" in edgecs("bench", "--memory").err
