"""The names that Ollama gives commands do what edgecs's own names do."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import click
import pytest

from edgecs_cli.app import cli
from tests.commands import Edgecs, one_line

FIXED = ("-c", 512, "--temp", 0, "-n", 6, "-q")


def options(name: str) -> set[str]:
    command: click.Command | None = cli
    for part in name.split():
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), part)
    assert command
    return {flag for param in command.params for flag in param.opts}


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("ls", "models list"),
        ("pull", "models pull"),
        ("show", "models show"),
        ("rm", "models rm"),
    ],
)
def test_an_alias_has_the_same_options(alias: str, name: str):
    assert options(alias) == options(name)


def test_run_has_the_options_of_both():
    both = options("chat") | options("generate")
    assert options("run") - {"prompt"} == both - {"-m", "--model", "-p", "--prompt"} | {
        "model"
    }


def test_a_prompt_is_answered_as_by_generate(edgecs: Edgecs, tiny_gguf: Path):
    own = edgecs("generate", "-m", tiny_gguf, "-p", "hello hello", *FIXED)
    assert own.code == 0
    assert edgecs("run", tiny_gguf, "hello", "hello", *FIXED).out == own.out
    assert edgecs("run", *FIXED, tiny_gguf, "hello hello").out == own.out
    answer = json.loads(edgecs("run", tiny_gguf, "hello hello", *FIXED, "--json").out)
    assert answer["text"].strip() == own.out.strip()


def test_without_a_prompt_it_is_a_chat(edgecs: Edgecs, tiny_gguf: Path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\nho\n")))
    chat = edgecs("run", tiny_gguf, *FIXED, "--no-history")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\nho\n")))
    assert chat.code == 0
    own = edgecs("chat", "-m", tiny_gguf, *FIXED, "--no-history")
    assert (chat.out, chat.err) == (own.out, own.err)


def test_text_from_a_file_is_added_to_the_prompt(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    notes = tmp_path / "notes.txt"
    notes.write_text("notes")
    for prompt, meaning in (((), "notes"), (("Sum up:",), "Sum up:\n\nnotes")):
        own = edgecs("generate", "-m", tiny_gguf, "-p", meaning, *FIXED)
        with notes.open() as file:
            monkeypatch.setattr(sys, "stdin", file)
            assert edgecs("run", tiny_gguf, *prompt, *FIXED).out == own.out
    notes.write_bytes(b"\xff")
    with notes.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        one_line(edgecs("run", tiny_gguf, *FIXED), 2, "is not UTF-8 text")


def test_an_option_of_the_other_use_is_refused(edgecs: Edgecs, tiny_gguf: Path):
    one_line(edgecs("run", tiny_gguf, "--json"), 2, "--json is an option of", "prompt")
    one_line(edgecs("run", tiny_gguf, "x", "--resume"), 2, "--resume is an option of")


def test_each_has_variables_of_its_own(edgecs: Edgecs, tiny_gguf: Path, monkeypatch):
    monkeypatch.setenv("EDGECS_RUN_PREDICT", "0")
    assert "EDGECS_RUN_PREDICT" in os.environ
    run = edgecs("run", tiny_gguf, "hello", "-c", 512, "-q", "--temp", 0, "--json")
    assert json.loads(run.out)["tokens"] == []


def test_ls_and_rm_work_on_the_store(edgecs: Edgecs, cache: Path):
    nothing = edgecs("ls")
    assert (nothing.code, nothing.out) == (0, "")
    assert "there is no model here" in nothing.err
    shown = json.loads(edgecs("show", "smollm2:135m", "--json").out)
    assert shown["name"] == "smollm2-135m-instruct"
    assert edgecs("rm", "smollm2:135m").code == 0
    one_line(edgecs("pull", "qwem3"), 3, "did you mean", "'qwen3-")
