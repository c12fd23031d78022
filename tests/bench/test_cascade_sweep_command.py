"""`edgecs bench --cascade-sweep` with two small random GGUFs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecs.testing.fakes import write_random_gguf
from tests.commands import one_line
from tests.conftest import Outcome

Edgecs = Callable[..., Outcome]
SAME = ("tokens", "text", "calls", "accepted", "rejected")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"text": text}) for text in ("hello, hello", "a b c a b")]
    path.write_text("\n".join(lines))
    return path


def test_trees_and_runs_give_the_same_answers(
    edgecs: Edgecs, tiny_gguf: Path, prompts: Path, tmp_path: Path
):
    other = write_random_gguf(tmp_path / "other.gguf", seed=1)
    fixed = ("-m", tiny_gguf, "--draft", other, "-c", 512, "--cascade-sweep")
    chosen = ("--suite", prompts, "-n", 12, "--alpha", 0.5, "--temp", 0, "--temp", 1)
    resumed = ("--resume", tmp_path / "sweep.jsonl", "--format", "json")

    def swept(*options: object) -> dict:
        outcome = edgecs("bench", *fixed, *chosen, *resumed, *options)
        assert outcome.code == 0, outcome.err
        found: dict = json.loads(outcome.out)
        return found

    quality = swept("--cascade-part", "quality")
    assert not quality["timed"]
    speed = swept("--cascade-part", "speed", "--cascade-speed-prompts", 2)
    assert speed["answers"] == quality["answers"]
    assert swept("--cascade-part", "finished", "--cascade-speed-prompts", 2) == speed
    assert len(speed["timed"]) == len(speed["answers"]) == 2 * 2 * len(speed["ways"])
    key = ("temperature", "id", "way")
    timed = {tuple(one[k] for k in key): one for one in speed["timed"]}
    for one in speed["answers"]:
        run = timed[tuple(one[k] for k in key)]
        assert [run[name] for name in SAME] == [one[name] for name in SAME], run
    assert len({one["text"] for one in speed["answers"]}) > 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--cascade-part", "speed"), "--cascade-part is for --cascade-sweep"),
        (("--cascade-speed-prompts", 2), "--cascade-speed-prompts is for"),
        (
            ("--cascade-sweep", "--cascade-part", "finished"),
            "--cascade-part finished needs the journal of a sweep: give --resume",
        ),
    ],
)
def test_options_that_do_not_fit(
    edgecs: Edgecs, tiny_gguf: Path, options: tuple, said: str
):
    outcome = edgecs("bench", "-m", tiny_gguf, "--draft", tiny_gguf, *options)
    one_line(outcome, 2, said)
