"""Other runtimes as modes: what they say becomes an answer, what they break a row."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgecs.errors import ModelError
from edgecs.sampling.chain import always, greedy
from edgecs_bench.peers import PeerAnswer, PeerFailed
from edgecs_bench.run import peer_modes
from edgecs_bench.run.blocks import ModeFailed
from edgecs_bench.run.modes import Asked
from edgecs_bench.run.peer_modes import Absent, PeerMode, drafters_by_kind, parts
from tests import drafter_files as files

ASKED = Asked([4, 5, 6], "text", always(greedy), 2)


class Process:
    """A peer that answers with the prompt, or not."""

    version, pid, fails = "fake 1", 7, False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.options = options

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        self.closed = True

    def answer(self, ids: list[int], text: str, n: int) -> PeerAnswer:
        if self.fails:
            raise PeerFailed("it fell over")
        return PeerAnswer(ids[:n], 0.5, 1.0, 3, 2, 9.0)


def test_what_a_peer_says_is_an_answer():
    mode = PeerMode("fake/plain", "plain", Process())  # type: ignore[arg-type]
    assert (mode.version, mode.pid, mode.greedy_only) == ("fake 1", 7, True)
    said = mode.answer(ASKED)
    assert (said.tokens, said.ttft, said.decode) == ([4, 5], 0.5, 1.0)
    assert (said.tested, said.accepted, said.peak_rss_mib) == (3, 2, 9.0)


def test_a_failure_is_one_of_the_mode():
    process = Process()
    process.fails = True
    mode = PeerMode("fake/plain", "plain", process)  # type: ignore[arg-type]
    with pytest.raises(ModeFailed, match="it fell over"):
        mode.answer(ASKED)
    with pytest.raises(ModeFailed, match="not here"):
        Absent("fake/plain", "plain", "not here").answer(ASKED)


@pytest.mark.parametrize("works", [True, False])
def test_a_part_is_plain_decoding_and_one_configuration(monkeypatch, works: bool):
    def start(*arguments: Any, **options: Any) -> Process:
        if works:
            return Process(*arguments, **options)
        raise PeerFailed("it does not start")

    monkeypatch.setattr(peer_modes, "PeerProcess", start)
    model, target = SimpleNamespace(path=Path("m")), SimpleNamespace(n_ctx=9, threads=1)
    loaded = SimpleNamespace(model=model, target=target)
    shop: Any = SimpleNamespace(loaded=loaded, make=lambda name: name)
    every = parts(["xllamacpp"], Path("root"), {}, print)
    closing: Any = SimpleNamespace(enter_context=lambda process: process)
    opened = [part(shop, closing) for part in every]
    assert "xllamacpp/plain" in [name for name, _ in opened]
    assert not [name for name, _ in opened if "draft" in name]
    for name, (plain, other) in opened:
        assert plain == "plain"  # type: ignore[comparison-overlap]
        assert other.name == name
        assert isinstance(other, PeerMode if works else Absent)


def test_drafters_are_told_apart_by_their_files(tmp_path: Path):
    plain = files.target(tmp_path / "target.gguf")
    small = files.target(tmp_path / "small.gguf", "llama")
    eagle = files.eagle3(tmp_path / "eagle.gguf")
    block = files.dflash(tmp_path / "block.gguf")
    given = [tmp_path / "onnx", eagle, small, block, plain]
    found = drafters_by_kind(plain, given)
    assert found == {"eagle3": eagle, "model": small, "dflash": block}
    own = files.with_heads(tmp_path / "own.gguf")
    assert drafters_by_kind(own, []) == {"mtp": None}
    (tmp_path / "junk.gguf").write_bytes(b"junk")
    with pytest.raises(ModelError, match=r"junk\.gguf"):
        drafters_by_kind(plain, [tmp_path / "junk.gguf"])
