"""Values that nobody types: a file, the environment, and which one counts."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest

from tests.commands import one_line
from tests.conftest import Outcome

Edgecs = Callable[..., Outcome]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the file of a user would be; it is not there yet."""
    monkeypatch.setattr(platformdirs, "user_config_dir", lambda name: str(tmp_path))
    monkeypatch.delenv("EDGECS_CONFIG", raising=False)
    return tmp_path / "config.toml"


def seed(edgecs: Edgecs, model: Path, *options: object) -> int:
    outcome = edgecs("generate", "-p", "hi", "-n", 1, "-q", "--json", *options)
    assert outcome.code == 0, outcome.err
    return int(json.loads(outcome.out)["sampling"]["seed"])


def test_the_command_line_counts_first_then_the_environment_then_the_file(
    edgecs: Edgecs, tiny_gguf: Path, config: Path, monkeypatch: pytest.MonkeyPatch
):
    config.write_text(
        f"seed = 1\nctx-size = 256\n[generate]\nmodel = '{tiny_gguf}'\nseed = 2\n"
        "[chat]\nseed = 3\n"
    )
    assert seed(edgecs, tiny_gguf) == 2
    monkeypatch.setenv("EDGECS_SEED", "4")
    assert seed(edgecs, tiny_gguf) == 4
    monkeypatch.setenv("EDGECS_GENERATE_SEED", "5")
    assert seed(edgecs, tiny_gguf) == 5
    assert seed(edgecs, tiny_gguf, "--seed", 6) == 6


def test_what_stands_in_no_table_is_for_every_command(
    edgecs: Edgecs, tiny_gguf: Path, config: Path
):
    config.write_text(
        f"model = '{tiny_gguf}'\nctx-size = 256\nseed = 7\nno-spec = true\n"
    )
    assert seed(edgecs, tiny_gguf) == 7


def test_options_that_may_be_repeated_take_lists(
    edgecs: Edgecs, tiny_gguf: Path, config: Path
):
    config.write_text(f"model = '{tiny_gguf}'\nctx-size = 256\nstop = ['a', 'b c']\n")
    outcome = edgecs("doctor", "--show-config", "--json")
    values = {
        (v["command"], v["option"]): v["value"]
        for v in json.loads(outcome.out)["values"]
    }
    assert values["generate", "stop"] == ["a", "b c"]
    assert values["chat", "stop"] == ["a", "b c"]
    one_line(edgecs("stop"), 2, "give the name of a model")  # a command of that name
    assert seed(edgecs, tiny_gguf, "--seed", 1) == 1


def test_it_is_said_where_a_value_comes_from(
    edgecs: Edgecs, config: Path, monkeypatch: pytest.MonkeyPatch
):
    config.write_text("threads = 3\n[chat]\ntemp = 0.5\n")
    monkeypatch.setenv("EDGECS_CHAT_THREADS", "2")
    lines = edgecs("doctor", "--show-config").out.splitlines()
    assert lines[0] == f"{config} (read)"
    assert f"generate --threads 3   from {config}" in lines
    assert "chat --threads 2   from EDGECS_CHAT_THREADS" in lines
    assert f"chat --temp 0.5   from {config} [chat]" in lines


def test_commands_below_others_have_values_too(
    edgecs: Edgecs,
    tiny_gguf: Path,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    there, here = tmp_path / "there", tmp_path / "here"
    config.write_text(
        f"quiet = true\n[convert.gguf]\nto = 'q8_0'\noutput = '{there}'\n"
        "[bench]\nreport = 'page.html'\n[models]\n"
    )
    assert edgecs("convert", "gguf", tiny_gguf).code == 0
    assert [file.suffix for file in there.iterdir()] == [".gguf"]
    monkeypatch.setenv("EDGECS_CONVERT_GGUF_OUTPUT", str(here))
    assert edgecs("convert", "gguf", tiny_gguf).code == 0
    assert len(list(here.iterdir())) == 1
    lines = edgecs("doctor", "--show-config").out.splitlines()
    assert f"convert gguf --to ['q8_0']   from {config} [convert.gguf]" in lines
    assert f"convert gguf --output {here}   from EDGECS_CONVERT_GGUF_OUTPUT" in lines
    assert f"bench --report page.html   from {config} [bench]" in lines


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed = ", "is not TOML"),
        ("a = " + "[" * 50_000, "is not TOML"),
        ("[chat]\ntempp = 1", "unknown key 'tempp' in [chat]; did you mean 'temp'?"),
        ("chat = 3", "chat must be a table, [chat], got 3"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    edgecs: Edgecs, config: Path, text: str, says: str
):
    config.write_text(text)
    one_line(edgecs("chat", "-m", "x"), 2, str(config), says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[chta]\nseed = 1", "unknown key 'chta' in the file; did you mean 'chat'?"),
        ("sede = 1", "unknown key 'sede' in the file; did you mean 'seed'?"),
        ("[models]\npul = 1", "unknown key 'pul' in [models]; did you mean 'pull'?"),
        ("[models.pull]\noffl = 1", "unknown key 'offl' in [models.pull]"),
        ("[convert]\ngguf = 1", "unknown key 'gguf' in [convert]"),
    ],
)
def test_names_that_no_command_knows(
    edgecs: Edgecs, config: Path, text: str, says: str
):
    config.write_text(text)
    one_line(edgecs("doctor", "--show-config"), 2, says)


def test_values_are_checked_as_if_they_were_typed(
    edgecs: Edgecs, tiny_gguf: Path, config: Path
):
    config.write_text(f"model = '{tiny_gguf}'\n[generate]\nctx-size = 'many'\n")
    outcome = edgecs("generate", "-p", "hi")
    one_line(outcome, 2, "--ctx-size must be a whole number from 0 to")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file = true", "true cannot be read"),
        ("stop = [true, [1]]\nfile = 1.5", "1.5 cannot be read"),
        ("grammar-file = 2026-01-01", "2026-01-01 cannot be read"),
        ("draft = [false]", "false"),
    ],
)
def test_values_of_other_kinds_are_checked_as_if_they_were_typed(
    edgecs: Edgecs, tiny_gguf: Path, config: Path, text: str, says: str
):
    config.write_text(f"[generate]\n{text}\n")
    prompt = [] if re.search("^file", text, re.M) else ["-p", "x"]
    outcome = edgecs("generate", "-m", tiny_gguf, "-c", 64, "--offline", *prompt)
    assert outcome.code in (2, 3, 6)
    assert says in outcome.err


def test_another_file_by_name(
    edgecs: Edgecs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EDGECS_CONFIG", str(tmp_path / "none.toml"))
    one_line(edgecs("chat", "-m", "x"), 2, "there is no file", "EDGECS_CONFIG")
    monkeypatch.setenv("EDGECS_CONFIG", str(tmp_path))
    one_line(edgecs("chat", "-m", "x"), 2, "cannot be read: Is a directory")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete(edgecs: Edgecs, shell: str):
    outcome = edgecs("completion", shell)
    assert outcome.code == 0
    assert "_EDGECS_COMPLETE" in outcome.out


def completions(*words: str) -> list[str]:
    """What a shell is offered for the last word, with its kind."""
    environment = {
        **os.environ,
        "_EDGECS_COMPLETE": "bash_complete",
        "COMP_WORDS": shlex.join(["edgecs", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-m", "edgecs_cli"],
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.stdout.split()


def test_models_and_files_are_completed():
    name = "smollm2-135m-instruct"
    begun = name[:10]
    assert completions("chat", "-m", begun) == [f"file,{begun}", f"plain,{name}"]
    assert completions("models", "pull", begun) == [f"file,{begun}", f"plain,{name}"]
    offered = completions("generate", "--draft", "")
    # First: click's script for bash forgets what came before a file.
    assert offered[0] == "file,"
    assert {"plain,none", f"plain,{name}", f"plain,{name}-head"} <= set(offered)
    assert completions("generate", "-f", "x") == ["file,x"]
    assert "plain,--overflow" in completions("chat", "--over")
    assert "plain,chat" in completions("ch")


def test_a_typo_is_told_the_nearest_command(edgecs: Edgecs):
    one_line(edgecs("genrate"), 2, "did you mean 'generate'?")
    one_line(edgecs("xyzzy"), 2, "see `edgecs --help`")


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("cli", "edgecs chat -m MODEL"),
        ("server", "edgecs serve -m MODEL"),
        ("list", "edgecs ls"),
        ("download", "edgecs pull MODEL"),
        ("remove", "edgecs rm MODEL"),
    ],
)
def test_words_of_other_tools_lead_to_ours(edgecs: Edgecs, typed: str, hint: str):
    one_line(edgecs(typed, "x"), 2, f"there is no command {typed!r}: ", hint)
