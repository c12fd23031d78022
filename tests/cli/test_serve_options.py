"""`edgecs serve`: which models it offers, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from edgecs.runtime.recipe import Recipe
from edgecs_cli.loading.serving import Offer
from tests.commands import Edgecs, one_line

ONE = (Recipe("smollm2-135m-instruct"),)
WAIT = 60.0  # seconds after which a test has failed


def offer(
    recipes: tuple[Recipe, ...] = ONE, most: int = 1, keep_alive: str | None = None
) -> Offer:
    return Offer(recipes, most, keep_alive, False, 8)


def test_one_model_answers_everything_and_stays():
    assert offer().is_single
    assert offer().default == "smollm2-135m-instruct"
    assert offer().stay is None
    assert offer(keep_alive="1m").stay == 60
    assert offer((Recipe("./a/b.gguf"),)).default == "b"


def test_with_more_models_requests_choose():
    more = offer(most=2)
    assert not more.is_single
    assert more.default == "smollm2-135m-instruct"
    assert more.stay == 300
    for several in (offer((Recipe(""),)), offer((*ONE, Recipe("b.gguf")))):
        assert several.default is None
        assert not several.is_single
        assert several.stay == 300


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--keep-alive", "soon"), "'soon' is not a duration"),
        (("--max-models", "0"), "from 1 to 1000, got '0'"),
        (("--max-models", "many"), "from 1 to 1000, got 'many'"),
        (("--draft", "a.gguf"), "--draft belongs to one model: give one -m"),
    ],
)
def test_what_cannot_be_is_said(edgecs: Edgecs, options: tuple[str, ...], says: str):
    one_line(edgecs("serve", "--port", 0, *options), 2, says)


def test_two_models_of_one_name_are_refused(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path
):
    other = tmp_path / "tiny.gguf"
    other.write_bytes(tiny_gguf.read_bytes())
    done = edgecs("serve", "--port", 0, "-m", tiny_gguf, "-m", other)
    one_line(done, 2, "two models are called tiny")


@pytest.mark.parametrize("loads", [True, False])
def test_sigterm_frees_the_models_and_removes_the_file(
    tiny_gguf: Path, tmp_path: Path, loads: bool
):
    options = ["-m", str(tiny_gguf), *(["--max-models", "2"] * loads), "-c", "512"]
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "edgecs_cli", "serve", "--port", "0", *options]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stderr is not None
            while "listening on" not in (line := child.stderr.readline()):
                assert line, "it ended"
            (path,) = (tmp_path / "edgecs" / "servers").iterdir()
            url = json.loads(path.read_text())["url"]
            assert url in line
            body = {"prompt": "hello", "max_tokens": 2, "model": "tiny"}
            reply = httpx.post(f"{url}/v1/completions", json=body, timeout=WAIT)
            assert reply.status_code == 200
            child.send_signal(signal.SIGTERM)
            assert child.wait(WAIT) == 143
        finally:
            child.kill()
    assert not path.exists()
