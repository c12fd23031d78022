"""Other runtimes in processes of their own: the line to them, and what breaks it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.errors import ConfigError
from edgecs_bench.blocks import ModeFailed
from edgecs_bench.modes import Asked
from edgecs_bench.peer_modes import Absent, PeerMode
from edgecs_bench.peers import PEERS, Peer, PeerFailed, PeerProcess, resolve, venv_for
from edgecs_bench.peers.process import environment
from edgecs_bench.peers.venvs import fingerprint

ADAPTER = """
import os, sys, time

class Adapter:
    version, children = "fake 1", ()

    def __init__(self, hello):
        self.hello = hello
        print("loaded", file=sys.stderr)
        print("what runtimes print on stdout")

    def answer(self, question, heard):
        {answer}

def load(hello):
    {load}
    return Adapter(hello)
"""
ECHO = "heard(question['ids'][:1]); heard(question['ids'][1 : question['n']])"


@pytest.fixture
def start(tmp_path: Path):
    """Starts a peer that was written just now, in this environment."""

    def call(answer: str = ECHO, load: str = "pass", **seconds: float) -> PeerProcess:
        script = tmp_path / "adapter.py"
        script.write_text(ADAPTER.format(answer=answer, load=load))
        peer = Peer("fake", (), script, {"plain": {}})
        return PeerProcess(
            peer,
            {"size": 3},
            model=Path("model.gguf"),
            draft=None,
            n_ctx=64,
            threads=1,
            root=tmp_path,
            progress=lambda text: None,
            **seconds,
        )

    return call


def test_a_peer_answers_until_it_is_closed(start):
    with start() as process:
        assert process.version == "fake 1"
        assert process.load_s >= 0
        for n in (2, 4):
            said = process.answer([7, 8, 9, 10], "text", n)
            assert said.tokens == [7, 8, 9, 10][:n]
            assert said.ttft_s > 0
            assert said.decode_s >= 0
            assert (said.tested, said.accepted) == (None, None)
        pid = process.pid
    assert pid > 0
    process.close()
    with pytest.raises(PeerFailed, match="fake has failed before"):
        process.answer([1], "", 1)


def test_an_adapter_is_told_what_it_needs(start):
    names = "('model', 'draft', 'n_ctx', 'threads', 'config')"
    with start(f"heard([len(repr([self.hello[n] for n in {names}]))])") as process:
        path = str(Path("model.gguf").absolute())
        expected = repr([path, None, 64, 1, {"size": 3}])
        assert process.answer([1], "", 1).tokens == [len(expected)]


def test_drafts_are_counted_where_a_peer_tells(start):
    with start("heard([1]); heard.tested = 5; heard.accepted = 2") as process:
        said = process.answer([1], "", 1)
        assert (said.tested, said.accepted) == (5, 2)


def test_an_error_of_the_peers_own_costs_one_answer(start):
    answer = "1 / 0 if question['n'] == 1 else heard([5])"
    with start(answer) as process:
        with pytest.raises(PeerFailed, match="fake: ZeroDivisionError: division"):
            process.answer([1], "", 1)
        assert process.answer([1], "", 2).tokens == [5]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("os._exit(3)", "fake ended with exit code 3: loaded"),
        ("os.kill(os.getpid(), 11)", "fake ended by SIGSEGV: loaded"),
        ("print('why', file=sys.stderr, flush=True); os._exit(1)", "code 1: why"),
        ("pass", "fake: RuntimeError: it answered with no token"),
        ("heard('ab')", None),
        ("heard([object()])", "fake ended with exit code 1: TypeError"),
    ],
)
def test_a_peer_that_breaks_says_how(start, answer: str, reason: str | None):
    with start(answer) as process:
        if reason is None:  # nonsense is told as it is: the tokens will fork
            assert process.answer([1], "", 1).tokens == ["a", "b"]
            return
        with pytest.raises(PeerFailed, match=reason.replace("(", "\\(")):
            process.answer([1], "", 1)


def test_a_peer_that_hangs_is_ended_with_all_it_started(start, tmp_path: Path):
    mark = tmp_path / "pid"
    answer = (
        "import subprocess; p = subprocess.Popen([sys.executable, '-c', "
        f"'import time; time.sleep(600)']); open({str(mark)!r}, 'w').write(str(p.pid));"
        " time.sleep(600)"
    )
    with (
        start(answer, answer_s=3.0) as process,
        pytest.raises(PeerFailed, match="fake gave no answer in 3 s: loaded"),
    ):
        process.answer([1], "", 1)
    pid = int(mark.read_text())
    until = monotonic() + 20
    while _runs(pid) and monotonic() < until:
        sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        ("raise OSError('no such model')", "fake: OSError: no such model"),
        ("os._exit(4)", "fake ended with exit code 4"),
        ("import nothing_like_this", "fake: ModuleNotFoundError"),
    ],
)
def test_a_peer_that_cannot_load_says_why(start, load: str, reason: str):
    with pytest.raises(PeerFailed, match=reason):
        start(load=load)


def test_a_peer_that_writes_much_is_still_heard(start):
    loud = "print('x' * 1000 * 1000, file=sys.stderr); heard([1])"
    with start(loud) as process:
        for _ in range(3):
            assert process.answer(list(range(50_000)), "t" * 100_000, 1).tokens == [1]


def test_a_peer_knows_nothing_of_this_python_and_of_the_network(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "here")
    given = environment(3)
    assert not [name for name in given if name.startswith("PYTHON")]
    assert given["OMP_NUM_THREADS"] == "3"
    assert given["HF_HUB_OFFLINE"] == "1"


def test_names_are_unique_and_found():
    everything = [f"{p.name}/{name}" for p, name, _ in resolve(["all"], has_draft=True)]
    assert len(set(everything)) == len(everything)
    assert everything == [f"{p.name}/{c}" for p in PEERS for c in p.configurations]
    without = [c for *_, c in resolve(["all"], has_draft=False)]
    assert without
    assert not any(config.get("draft") for config in without)
    for peer, name, config in resolve(["all"], has_draft=True):
        label = f"{peer.name}/{name}"
        assert list(resolve([label], has_draft=True)) == [(peer, name, config)]
        assert peer.script.is_file()
    with pytest.raises(ConfigError, match="no peer nobody: give all, or some of"):
        resolve(["all", "nobody"], has_draft=False)


def test_requirements_are_pinned():
    for peer in PEERS:
        assert all("==" in requirement for requirement in peer.requirements), peer


@given(st.lists(st.sampled_from(["a==1", "a==2", "b==1"]), max_size=3))
def test_an_environment_has_the_name_of_what_is_in_it(requirements: list[str]):
    peer = replace(PEERS[0], requirements=tuple(requirements))
    assert fingerprint(peer) == fingerprint(replace(peer))
    other = replace(peer, requirements=(*requirements, "c==1"))
    assert fingerprint(other) != fingerprint(peer)
    built = replace(peer, build={"CMAKE_ARGS": "-DX=ON"})
    assert fingerprint(built) != fingerprint(peer)


def test_what_cannot_be_installed_leaves_nothing_half_used(tmp_path: Path):
    peer = replace(PEERS[0], requirements=("./no-such-package",))
    with pytest.raises(PeerFailed, match="llama-cpp-python cannot be installed: "):
        venv_for(peer, tmp_path, lambda text: None)
    assert list(tmp_path.iterdir()) == []
    assert venv_for(PEERS[0], tmp_path, lambda text: None) == Path(sys.executable)


def test_a_peer_is_a_mode(start):
    asked = Asked([4, 5, 6], "text", None, 2)  # type: ignore[arg-type]
    with start() as process:
        mode = PeerMode("fake/plain", "plain", process)
        assert (mode.version, mode.pid) == ("fake 1", process.pid)
        said = mode.answer(asked)
        assert said.tokens == [4, 5]
        assert said.peak_rss_mib is not None
    with pytest.raises(ModeFailed, match="fake has failed before"):
        mode.answer(asked)
    with pytest.raises(ModeFailed, match="not here"):
        Absent("fake/plain", "plain", "not here").answer(asked)
