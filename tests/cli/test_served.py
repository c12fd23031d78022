"""Commands that use a running server: the same text, or the model loaded as before."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from edgecs.engines.load_options import LoadOptions
from edgecs.server.app import Serving
from edgecs_cli.client import generate_served
from edgecs_cli.client.state_file import servers_folder
from tests.commands import Edgecs, one_line
from tests.server.servers import WAIT, published_server

OPTIONS = LoadOptions(n_ctx=512, threads=1, sequences=2)
FIXED = ("-t", 1, "-p", "hello, hello")


@pytest.fixture(scope="module")
def server(
    tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    root = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platformdirs, "user_state_dir", lambda name: str(root / name))
        patch.setenv("XDG_STATE_HOME", str(root))
        with published_server(tiny_gguf, root, OPTIONS) as state:
            yield state


@pytest.fixture
def generate(edgecs: Edgecs, tiny_gguf: Path) -> Callable[..., object]:
    return lambda *more: edgecs("generate", "-m", tiny_gguf, *FIXED, *more)


SAMPLED = ("--temp", 1.3, "-s", 9, "-n", 40)


@pytest.mark.parametrize(
    "options",
    [
        ("--temp", 0, "-n", 30),
        SAMPLED,
        (*SAMPLED, "--raw"),
        (*SAMPLED, "-sys", "Be brief.", "-c", 512),
        (*SAMPLED, "--top-k", 5, "--top-p", 0.9, "--min-p", 0, "--typical", 0.9),
        (*SAMPLED, "--repeat-penalty", 1.5, "--presence-penalty", 0.3),
        (*SAMPLED, "--dry-multiplier", 2, "--dry-sequence-breaker", "none"),
        (*SAMPLED, "--xtc-probability", 0.9, "--xtc-threshold", 0.01),
        (*SAMPLED, "--top-nsigma", 1),
        (*SAMPLED, "-l", "48+3"),
        (*SAMPLED, "--stop", "e"),
        (*SAMPLED, "--no-spec"),
        (*SAMPLED, "--grammar", 'root ::= "yes" | "no"'),
        (*SAMPLED, "-j", '{"enum": ["one", "two"]}'),
        ("-n", 0),
    ],
)
def test_a_server_says_the_same(server: Serving, generate: Edgecs, options: object):
    assert isinstance(options, tuple)
    theirs, ours = generate(*options), generate(*options, "--server", "off")
    assert "served by http://127.0.0.1:" in theirs.err
    assert "served by" not in ours.err
    assert (theirs.code, theirs.out) == (ours.code, ours.out)
    assert theirs.code == 0
    counts = [out.err.splitlines()[-1].split(" ·")[0] for out in (theirs, ours)]
    assert counts[0] == counts[1]


_TIMED = ("timings", "usage", "speculative", "sampling")


@pytest.mark.parametrize(
    "options", [("--temp", 0, "-n", 30), (*SAMPLED, "--stop", "e"), SAMPLED]
)
def test_a_server_gives_the_same_json(
    server: Serving, generate: Edgecs, options: tuple[object, ...]
):
    done = generate(*options, "--json")
    assert "served by" in done.err
    theirs = json.loads(done.out)
    ours = json.loads(generate(*options, "--json", "--server", "off").out)
    assert theirs.keys() == ours.keys()
    assert theirs["tokens"]
    for name in theirs.keys() - {*_TIMED, "exact"}:
        assert theirs[name] == ours[name], name
    assert theirs["sampling"]["temperature"] == ours["sampling"]["temperature"]
    for name in ("timings", "speculative", "usage", "exact"):
        assert theirs[name].keys() == ours[name].keys()
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    for name in counts:
        assert theirs["usage"][name] == ours["usage"][name]
    assert theirs["speculative"]["parameters"] == ours["speculative"]["parameters"]


def test_a_server_explains_the_same_text(server: Serving, generate: Edgecs):
    options = ("--temp", 0, "-n", 60, "--explain")
    theirs, ours = generate(*options), generate(*options, "--server", "off")
    assert "served by" in theirs.err
    told = [
        re.sub(r"\[\w+:|\]", "", done.out) for done in (theirs, ours)
    ]  # what is drafted depends on times
    assert told[0] == told[1]
    for part in ("source", "target", "exactness: "):
        assert part in theirs.err
    off = generate(*options, "--no-spec")
    assert "served by" in off.err
    assert "speculation: off (not asked for)" in off.err
    assert "[" not in off.out


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("-t", 2), "its threads is another one"),
        (("-ctk", "f32"), "its type_k is another one"),
        (("-c", 256), "its context has 512 tokens"),
        (("--exact", "strict"), "its exact is another one"),
        (("--draft-max", 3), "no server is used, as --draft-max is given"),
        (("--lenience", 2), "no server is used, as --lenience is given"),
        (("--no-mmap",), "no server is used, as --mmap/--no-mmap is given"),
    ],
)
def test_what_a_server_would_do_differently_is_loaded(
    server: Serving, generate: Edgecs, options: tuple[object, ...], why: str
):
    done = generate("-n", 4, "--temp", 0, "-v", *options)
    assert done.code == 0, done.err
    assert why in done.err
    assert "served by" not in done.err
    quiet = generate("-n", 4, "--temp", 0, *options)
    assert "server" not in quiet.err


def test_another_model_is_loaded(
    server: Serving, edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path
):
    other = tmp_path / "tiny.gguf"
    other.write_bytes(tiny_gguf.read_bytes())
    done = edgecs("generate", "-m", other, *FIXED, "-n", 4, "-v", "-c", 512)
    assert done.code == 0
    assert "it does not serve" in done.err


def test_a_prompt_that_is_too_long_for_the_server_is_answered_here(
    server: Serving, edgecs: Edgecs, tiny_gguf: Path
):
    long = ("-t", 1, "-p", "hello " * 200, "-n", 3, "--temp", 0)
    done = edgecs("generate", "-m", tiny_gguf, *long, "-v", "--raw")
    assert done.code == 0
    assert "the context holds 512" in done.err
    assert "served by" not in done.err
    same = edgecs("generate", "-m", tiny_gguf, *long, "--raw", "--server", "off")
    assert done.out == same.out


def test_the_file_of_a_server_that_was_killed_leads_nowhere(
    generate: Edgecs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(platformdirs, "user_state_dir", lambda name: str(tmp_path))
    servers_folder().mkdir(mode=0o700)
    found = {
        "format": "edgecs-server",
        "url": "http://127.0.0.1:9",
        "key": "0" * 64,
        "pid": os.getpid(),
        "version": "1",
        "models": [],
    }
    path = servers_folder() / "1.json"
    path.write_text(json.dumps(found))
    path.chmod(0o600)
    done = generate("-n", 3, "-c", 512)
    assert done.code == 0
    assert "server" not in done.err


def test_ctrl_c_ends_the_answer_on_the_server(
    server: Serving, generate: Edgecs, monkeypatch: pytest.MonkeyPatch
):
    shown = list[str]()
    echo = generate_served.echo

    def stop_at_the_third(text: str = "", **more: bool) -> None:
        echo(text, **more)
        shown.append(text)
        if len(shown) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(generate_served, "echo", stop_at_the_third)
    done = generate("--temp", 1.3, "-s", 9, "-l", "269-100", "-n", 480)
    assert done.code == 130
    assert done.err.splitlines()[-1].endswith("stopped")
    assert done.out.endswith("\n")
    pool = server.pool
    assert pool is not None
    until = time.monotonic() + WAIT
    while any(one.users for one in pool.residents()):
        assert time.monotonic() < until


def test_a_url_that_is_given_must_answer(generate: Edgecs):
    url = ("--server", "http://127.0.0.1:9")
    one_line(generate(*url), 1, "http://127.0.0.1:9 cannot be reached")
    one_line(generate("--server", "somewhere"), 2, "is not a server's URL")
    one_line(generate(*url, "--draft-max", 2), 2, "--draft-max needs --server off")


def test_a_given_url_is_used_and_its_refusals_are_told(
    server: Serving, generate: Edgecs
):
    local = server.access.local
    assert local is not None
    done = generate("--server", local.url, "-n", 4, "--temp", 0)
    assert f"served by {local.url}" in done.err
    one_line(generate("--server", local.url, "-t", 2), 2, "its threads is another one")


def test_the_client_imports_little(server: Serving, tiny_gguf: Path):
    command = ["generate", "-m", str(tiny_gguf), *map(str, FIXED), "-n", "2"]
    script = (
        "import sys; from edgecs_cli.running import run; "
        f"code = run({command}); print(); print(*sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert "served by" in done.stderr
    loaded = {*done.stdout.splitlines()[-1].split()}
    assert not loaded & {
        *("numpy", "llama_cpp", "psutil", "pydantic", "httpx", "asyncio", "rich"),
        *("llguidance", "huggingface_hub", "jinja2", "edgecs.runtime"),
    }


class TestPsAndStop:
    """What is in memory, and unloading it."""

    def test_a_model_is_listed_unloaded_and_loaded_again(
        self, server: Serving, edgecs: Edgecs, generate: Edgecs
    ):
        heads, row = edgecs("ps").out.splitlines()
        assert heads.split()[:4] == ["name", "size", "state", "busy"]
        assert "tiny" in row
        assert "loaded" in row
        assert "0/2" in row
        assert "for ever" in row
        (entry,) = json.loads(edgecs("ps", "--json").out)
        assert entry["meta"]["n_ctx"] == 512
        one_line(edgecs("stop", "other"), 2, "other is not in memory")
        one_line(edgecs("stop"), 2, "give the name of a model")
        one_line(edgecs("stop", "tiny", "--all"), 2, "give the name of a model")
        assert edgecs("stop", "tiny").err == "unloaded tiny\n"
        assert edgecs("ps").err.startswith("no model is in memory")
        assert "served by" in generate("-n", 2).err
        assert edgecs("stop", "--all").err == "unloaded tiny\n"
        assert edgecs("stop", "--all").code == 0

    def test_stop_finishes_or_cancels_current_answers(
        self, server: Serving, edgecs: Edgecs
    ):
        pool = server.pool
        assert pool is not None
        assert server.access.local is not None
        url = server.access.local.url
        for cancel in (False, True):
            told = list[dict[str, object]]()
            thread = threading.Thread(target=lambda: told.append(_long(url)))  # noqa: B023
            thread.start()
            until = time.monotonic() + WAIT
            while not any(one.users and one.engine for one in pool.residents()):
                assert time.monotonic() < until
            assert edgecs("stop", "tiny", *["--cancel"] * cancel).code == 0
            assert pool.residents() == []
            thread.join(WAIT)
            usage: Any = told[0].get("usage")  # None: cancelled in the queue
            used = usage["completion_tokens"] if usage else 0
            assert (used < 400 * _ANSWERS) == cancel
            choices: Any = told[0].get("choices", [])
            assert {choice["finish_reason"] for choice in choices} <= {"length"}
            assert cancel or len(choices) == _ANSWERS


_ANSWERS = 10  # so many that they do not end before they are cancelled


def _long(url: str) -> dict[str, object]:
    import httpx

    ends = {"269": -100, "270": -100, "271": -100, "268": -100}
    body = {"prompt": "hello", "max_tokens": 400, "logit_bias": ends, "seed": 3}
    body["n"] = _ANSWERS
    reply = httpx.post(f"{url}/v1/completions", json=body, timeout=WAIT)
    found: dict[str, object] = reply.json()
    return found


@pytest.mark.model
def test_the_default_model_says_the_same(
    model_path: Path, edgecs: Edgecs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(platformdirs, "user_state_dir", lambda name: str(tmp_path))
    options = LoadOptions(n_ctx=1024, sequences=4)
    base = ("generate", "-m", model_path, "-c", 1024, "-n", 48)
    with published_server(model_path, tmp_path, options):
        for more in (
            ("-p", "What is a llama?", "--temp", 0),
            ("-p", "Tell me a story.", "-s", 5, "-sys", "Be brief."),
            ("-p", "Once upon a time", "--raw", "-s", 6, "--temp", 1.2),
        ):
            theirs = edgecs(*base, *more)
            assert "served by" in theirs.err
            assert theirs.out == edgecs(*base, *more, "--server", "off").out
