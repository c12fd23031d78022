"""A fixed part of what `make kills` does: no file is lost or half written by a kill."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from random import Random

import pytest

from tests.kills import running
from tests.kills.__main__ import shares
from tests.kills.kinds import KINDS
from tests.kills.kinds.saving import Save
from tests.kills.loop import Loop, kill
from tests.kills.running import Moment, Place, drawn

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="there is no SIGKILL, and no inherited pipe"
)
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="the extra 'distill' is not installed",
)
FEW = {"save": 3, "profile": 1, "probe": 2, "pull": 3, "hub": 1, "bench": 2}
FEW |= {"memory": 2, "phrases": 1}


@pytest.mark.parametrize("kind", FEW)
def test_a_kill_loses_nothing_but_the_last_thing(kind: str):
    told: list[str] = []
    found = kill(kind, "fixed", FEW[kind], told.append)
    assert not told
    assert not found["problems"]
    assert found["kills"] >= FEW[kind]


@needs_torch
def test_a_killed_distillation_goes_on():
    told: list[str] = []
    assert not kill("samples", "fixed", 1, told.append)["problems"], told


def test_what_is_lost_and_left_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Save, "lost", lambda *seen: ["a turn"])
    monkeypatch.setattr(Save, "known", lambda self, file: file)  # chats have new names
    told: list[str] = []
    counts = Loop("save", "fixed", tmp_path, told.append).run(1)
    assert counts.lost == counts.kills
    assert counts.leftovers == counts.episodes
    assert counts.problems == len(told) == counts.lost + counts.leftovers


@pytest.mark.parametrize("word", ["os.abort()", "raise SystemExit(3)"])
def test_a_command_that_ends_by_itself_was_not_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
):
    script = f"import os, sys; os.write(int(sys.argv[1]), b'begun\\n'); {word}"
    monkeypatch.setattr(running, "_CHILD", (sys.executable, "-c", script))
    ended = Place(tmp_path / "place").run([], moment=Moment(seconds=60))
    assert ended.begun
    assert ended.crashed
    assert not ended.killed


def test_kills_are_the_same_when_they_are_drawn_again():
    def moments(seed: str) -> list[Moment]:
        random = Random(seed)
        return [drawn(random, 2.0, 30) for _ in range(50)]

    assert moments("1") == moments("1") != moments("2")
    for moment in moments("1"):
        assert 0 <= moment.seconds <= 2
        assert 0 <= moment.step <= 30


def test_every_kind_has_its_share():
    assert shares((), 1) == dict.fromkeys(KINDS, 1)
    assert sum(shares((), 200).values()) >= 200
    assert shares(("pull",), 7) == {"pull": 7}
