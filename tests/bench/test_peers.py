"""Peers: their table, their environments, and processes that behave badly."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgecs.engines import NO_TELEMETRY
from edgecs.errors import ConfigError
from edgecs_bench.peers import PEERS, Peer, PeerFailed, PeerProcess, resolve, venv_for
from edgecs_bench.peers import process as module
from edgecs_bench.peers.adapter_main import sentence
from edgecs_bench.peers.venvs import fingerprint

Start = Callable[..., PeerProcess]

# Says of a prompt the prompt, and of what it was given that it was given it.
ECHO = """
import os, sys

class Adapter:
    children = ()
    def __init__(self, hello):
        print("noise")
        os.system("echo more noise")
        self.version = f"echo {sorted(hello['config'])} {hello['draft']}"
    def answer(self, question, heard):
        print("noise")
        if question["text"] == "fail":
            raise ValueError("two\\nlines")
        if question["text"] == "crash":
            print("the last words", file=sys.stderr)
            os._exit(7)
        if question["text"] == "threads":
            heard([int(os.environ["OMP_NUM_THREADS"]), "PYTHONPATH" in os.environ])
        for token in question["ids"][: question["n"]]:
            heard([token])
        heard.tested, heard.accepted = 3, 2

def load(hello):
    return Adapter(hello)
"""
READY = """
import sys
sys.stdin.readline()
print('{"ready": true, "version": "1", "load_s": 0.0}', flush=True)
sys.stdin.readline()
"""

# Its version is the id of a process that it has started.
HANGS = """
import json, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(json.dumps({"version": str(child.pid), "load_s": 0}), flush=True)
time.sleep(600)
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts a peer with this adapter, or a process that is this speaker."""
    started: list[PeerProcess] = []

    def call(adapter: str = ECHO, speaker: str = "", **options: Any) -> PeerProcess:
        script = tmp_path / "adapter.py"
        script.write_text(adapter)
        if speaker:
            path = tmp_path / "speaker.py"
            path.write_text(speaker)
            monkeypatch.setattr(module, "SPEAKER", path)
        shape = {"model": Path("m.gguf"), "draft": None, "n_ctx": 64, "threads": 1}
        shape |= {"root": tmp_path, "progress": lambda text: None, "config": {}}
        options = shape | options
        peer = Peer("fake", (), script, {})
        started.append(PeerProcess(peer, options.pop("config"), **options))
        return started[-1]

    yield call
    for process in started:
        process.close()


def test_an_answer_comes_back_with_its_times_and_counts(start: Start):
    with start(config={"size_n": 3}) as process:
        assert process.version == "echo ['size_n'] None"
        said = process.answer([5, 6, 7], "text", 2)
        assert said.tokens == [5, 6]
        assert (said.tested, said.accepted) == (3, 2)
        assert said.ttft_s > 0 <= said.decode_s
        assert said.peak_rss_mib >= 0
        assert process.answer([8], "again", 2).tokens == [8]


def test_only_a_configuration_with_a_draft_model_is_given_one(start: Start):
    draft = Path("/draft.gguf")
    assert start(draft=draft).version.endswith(" None")
    with_draft = start(draft=draft, config={"draft": "model"})
    assert with_draft.version.endswith(str(draft.absolute()))


def test_a_peer_has_the_threads_it_is_given_and_not_our_python(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert start(threads=3).answer([], "threads", 2).tokens == [3, 0]


def test_after_an_error_of_its_own_a_peer_goes_on(start: Start):
    process = start()
    with pytest.raises(PeerFailed, match="^fake: ValueError: two lines$"):
        process.answer([1], "fail", 1)
    with pytest.raises(PeerFailed, match="has no token"):
        process.answer([], "nothing", 1)
    assert process.answer([1], "text", 1).tokens == [1]


def test_a_crash_tells_the_exit_code_and_the_last_words(start: Start):
    process = start()
    with pytest.raises(PeerFailed, match="ended with exit code 7: the last words$"):
        process.answer([1], "crash", 1)
    with pytest.raises(PeerFailed, match="has failed before"):
        process.answer([1], "text", 1)


def test_a_model_that_cannot_be_loaded_is_an_error_in_one_sentence(start: Start):
    with pytest.raises(PeerFailed, match="^fake: OSError: no such model$"):
        start("def load(hello): raise OSError('no such model')")


@pytest.mark.parametrize(
    ("speaker", "why"),
    [
        (
            "import sys; sys.stdin.readline(); print('garbage')",
            "invalid answer: 'garbage",
        ),
        ("import sys; sys.stdin.readline(); print('[1]')", "invalid answer: '\\[1\\]"),
        ("import sys; sys.stdin.readline(); print('{}')", "did not report"),
        ("raise SystemExit(3)", "ended with exit code 3"),
        ("import sys; sys.exit('why')", "ended with exit code 1: why"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL"),
    ],
)
def test_what_is_no_hello_is_a_failure(start: Start, speaker: str, why: str):
    with pytest.raises(PeerFailed, match=why):
        start(speaker=speaker)


@pytest.mark.parametrize(
    ("ending", "why"),
    [
        ("print('tokens: 1, 2')", "invalid answer: 'tokens: 1, 2"),
        ("print('{\"tokens\": [1]}')", "gave an invalid answer"),
        ("", "ended with exit code 0"),
    ],
)
def test_what_is_no_answer_is_a_failure(start: Start, ending: str, why: str):
    process = start(speaker=READY + ending)
    with pytest.raises(PeerFailed, match=why):
        process.answer([1], "text", 1)
    with pytest.raises(PeerFailed, match="has failed before"):
        process.answer([1], "text", 1)


def test_a_peer_that_hangs_is_ended_with_all_it_started(start: Start):
    process = start(speaker=HANGS, answer_s=0.2)
    with pytest.raises(PeerFailed, match=r"did not answer within 0\.2 s"):
        process.answer([1], "text", 1)
    assert not runs(int(process.version))


def runs(pid: int) -> bool:
    done = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    )
    return bool(done.stdout.strip()) and "Z" not in done.stdout


def test_a_peer_that_does_not_read_a_long_question_is_not_waited_for(start: Start):
    process = start(speaker=HANGS, answer_s=0.2)
    with pytest.raises(PeerFailed, match="did not answer within"):
        process.answer(list(range(200_000)), "text", 1)


def test_much_on_stderr_does_not_block(start: Start):
    loud = ECHO.replace('print("noise")', 'print("n" * 300_000 + "\\n" * 999)')
    assert start(loud).answer([1], "text", 1).tokens == [1]


def test_closing_twice_is_closing_once(start: Start):
    process = start()
    process.close()
    process.close()


def test_peers_and_configurations_have_names_of_their_own():
    names = [peer.name for peer in PEERS]
    assert len(set(names)) == len(names)
    for peer in PEERS:
        assert peer.script.exists()
        assert peer.configurations
        assert all("==" in requirement for requirement in peer.requirements)
        assert "/" not in "".join([peer.name, *peer.configurations])


KINDS = ("model", "mtp", "eagle3", "dflash")


def labels(names: list[str], kinds: Sequence[str] = KINDS) -> list[str]:
    chosen = resolve(names, kinds)
    return [f"{peer.name}/{name}" for peer, name, _ in chosen]


def test_all_is_every_configuration_of_every_peer():
    found = labels(["all"])
    assert len(set(found)) == len(found) == sum(len(p.configurations) for p in PEERS)
    assert labels([peer.name for peer in reversed(PEERS)]) == found


def test_without_a_draft_model_nothing_needs_one():
    few = set(labels(["xllamacpp"], ()))
    assert not any("draft" in name for name in few)
    for kind, names in (
        ("model", {"draft-simple"}),
        ("mtp", {"draft-mtp", "draft-mtp-3"}),
        ("eagle3", {"draft-eagle3", "draft-eagle3-3"}),
        ("dflash", {"draft-dflash"}),
    ):
        more = set(labels(["xllamacpp"], [kind])) - few
        assert more == {f"xllamacpp/{name}" for name in names}


def test_one_configuration_can_be_named():
    assert labels(["xllamacpp/plain"]) == ["xllamacpp/plain"]


def test_an_unknown_peer_is_refused_with_the_names_there_are():
    with pytest.raises(ConfigError, match="no peer vllm: .*llama-cpp-python"):
        resolve(["vllm"], KINDS)


def test_no_peer_calls_home():
    assert module.environment(2).items() >= NO_TELEMETRY.items()


def test_an_environment_is_named_after_what_is_in_it():
    peer = Peer("fake", ("a==1",), Path("a.py"), {})
    same = dataclasses.replace(peer, script=Path("b.py"), configurations={"plain": {}})
    assert fingerprint(same) == fingerprint(peer)
    for other in ({"requirements": ("a==2",)}, {"requirements": ("a==1", "b==1")}):
        assert fingerprint(dataclasses.replace(peer, **other)) != fingerprint(peer)


def test_a_peer_without_requirements_runs_in_our_environment(tmp_path: Path):
    peer = Peer("fake", (), Path("a.py"), {})
    assert venv_for(peer, tmp_path, print) == Path(sys.executable)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_installed_is_a_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    peer = Peer("fake", ("edgecs-no-such-package==1",), Path("a.py"), {})
    root = tmp_path / "peers"
    with pytest.raises(PeerFailed, match="fake cannot be installed: .*no-such-package"):
        venv_for(peer, root, lambda text: None)
    assert not list(root.iterdir())


def test_an_environment_is_made_once(tmp_path: Path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "fake_peer-1-py3-none-any.whl").write_bytes(wheel())
    peer = Peer("fake", (str(package / "fake_peer-1-py3-none-any.whl"),), Path("a"), {})
    told: list[str] = []
    python = venv_for(peer, tmp_path / "peers", told.append)
    subprocess.run([python, "-I", "-c", "import fake_peer"], check=True)
    assert venv_for(peer, tmp_path / "peers", told.append) == python
    assert len(told) == len(list((tmp_path / "peers").iterdir())) == 1


def wheel() -> bytes:
    """Of a package with one empty module."""
    import io
    import zipfile

    data, info = io.BytesIO(), "fake_peer-1.dist-info"
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("fake_peer.py", "")
        file.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: fake-peer\nVersion: 1\n"
        )
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        file.writestr(f"{info}/WHEEL", tag)
        file.writestr(f"{info}/RECORD", "")
    return data.getvalue()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("a\n  b"), "ValueError: a b"),
        (ValueError(), "ValueError"),
        (
            RuntimeError("Exception from /a/b/c.cpp:716:\nNo type"),
            "RuntimeError: No type",
        ),
    ],
)
def test_an_error_is_a_sentence_without_places_in_somebodys_sources(
    error: Exception, words: str
):
    assert sentence(error) == words
