"""`generate --compare`: the answer again without drafts and in llama.cpp's own loop."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecs_bench.run.plain_llama import PlainLlama
from edgecs_cli.commands.compare import Answer, lines
from tests.conftest import Outcome, interrupt_at

Edgecs = Callable[..., Outcome]


def asked(model: Path) -> list[object]:
    return ["generate", "-m", model, "-c", 256, "-n", 24, "-p", "abab", "--raw"]


@pytest.mark.parametrize("kernels", ["own", "llama"])
def test_it_says_how_fast_each_was_and_that_tokens_are_the_same(
    edgecs: Edgecs, tiny_gguf: Path, kernels: str
):
    wanted = ["--temp", 0, "--compare", "--json", "--kernels", kernels]
    done = edgecs(*asked(tiny_gguf), *wanted)
    assert done.code == 0, done.err
    said = json.loads(done.out)["tokens"]
    line = next(line for line in done.err.splitlines() if line.startswith("tok/s"))
    speeds = r"llama\.cpp [\d.]+ · plain edgecs [\d.]+ · with drafts [\d.]+ "
    gains = r"\([\d.]+x llama\.cpp, [\d.]+x plain\)"
    assert re.fullmatch(
        rf"tok/s: {speeds}{gains} · the same {len(said)} tokens with and without "
        "drafts",
        line,
    )
    differs = [text for text in done.err.splitlines() if "round otherwise" in text]
    assert kernels == "own" or not differs


@pytest.mark.parametrize(
    "options",
    [
        ("--temp", 0.8),
        ("--temp", 0, "--grammar", 'root ::= "a"'),
        ("--temp", 0, "-j", "{}"),
    ],
)
def test_what_llama_cpp_does_not_do_is_refused(
    edgecs: Edgecs, tiny_gguf: Path, options: tuple[object, ...]
):
    done = edgecs(*asked(tiny_gguf), "--compare", *options)
    assert done.code == 2
    assert "--compare compares greedy answers" in done.err


def test_an_interrupted_answer_is_not_compared(
    edgecs: Edgecs, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
):
    interrupt_at(monkeypatch, 3)
    wanted = ["--temp", 0, "--compare", "--no-spec"]
    done = edgecs(*asked(tiny_gguf), *wanted)
    assert done.code == 130
    assert "tok/s:" not in done.err


def test_an_interrupt_ends_the_loop_of_llama_cpp(
    edgecs: Edgecs, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
):
    answer, seen = PlainLlama.answer, list[int]()

    def stopped(self, prompt, most, stopped):
        said = answer(self, prompt, most, lambda: True)
        seen.append(len(said[0]))
        return said

    monkeypatch.setattr(PlainLlama, "answer", stopped)
    assert edgecs(*asked(tiny_gguf), "--temp", 0, "--compare").code == 0
    assert seen == [1]


def test_changed_answers_are_told():
    ours, plain = Answer([1, 2, 3], 2.0), Answer([1, 9, 3], 1.0)
    assert "drafts changed the answer after 1 tokens" in lines(ours, plain, None)[0]
    assert "not enough memory" in lines(ours, plain, None)[1]
    (told,) = lines(plain, plain, plain)
    assert "the same 3 tokens" in told
