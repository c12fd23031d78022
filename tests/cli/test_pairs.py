"""Which drafters fit which models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from edgecs.testing.fakes import write_random_gguf
from tests import drafter_files as files
from tests.conftest import Outcome

Edgecs = Callable[..., Outcome]


def test_every_model_is_looked_at_with_every_smaller_one(
    edgecs: Edgecs, tmp_path: Path, cache: Path
):
    big = write_random_gguf(tmp_path / "big.gguf")
    small = write_random_gguf(tmp_path / "small.gguf", kind="Q8_0")
    other = write_random_gguf(tmp_path / "other.gguf", vocab_size=270, kind="Q8_0")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF, or not")
    empty = tmp_path / "folder"
    empty.mkdir()
    outcome = edgecs("models", "pairs", big, small, other, bad, empty, "--json")
    assert outcome.code == 0
    pairs = {(p["target"], p["drafter"]): p for p in json.loads(outcome.out)}
    shipped = "smollm2-135m-instruct-head"
    assert pairs["big.gguf", "small.gguf"]["reason"] is None
    assert "edgecs tune" in pairs["big.gguf", "small.gguf"]["about"]
    assert "cannot draft for big.gguf" in pairs["big.gguf", "other.gguf"]["reason"]
    assert "cannot draft for" in pairs["big.gguf", shipped]["reason"]
    assert ("small.gguf", "big.gguf") not in pairs
    assert "bad.gguf" in outcome.err
    assert "neither a .gguf file nor" in outcome.err


def test_heads_are_drafters_of_the_models_that_they_fit(
    edgecs: Edgecs, tmp_path: Path, cache: Path
):
    own = files.with_heads(tmp_path / "own.gguf")
    target = files.target(tmp_path / "target.gguf")
    without = files.target(tmp_path / "qwen2.gguf", "qwen2")
    eagle3 = files.eagle3(tmp_path / "eagle3.gguf")
    dflash = files.dflash(tmp_path / "dflash.gguf", layers=(1, 99))
    outcome = edgecs("models", "pairs", own, target, without, eagle3, dflash, "--json")
    assert outcome.code == 0
    pairs = {(p["target"], p["drafter"]): p for p in json.loads(outcome.out)}
    assert pairs["own.gguf", "head"]["reason"] is None
    assert ("target.gguf", "head") not in pairs
    assert pairs["target.gguf", "eagle3.gguf"]["reason"] is None
    assert "qwen2 models" in pairs["qwen2.gguf", "eagle3.gguf"]["reason"]
    assert "reads the layers 1, 99" in pairs["target.gguf", "dflash.gguf"]["reason"]
    assert not any(target == "eagle3.gguf" for target, _ in pairs)


def test_without_models_there_is_a_hint(edgecs: Edgecs, cache: Path):
    outcome = edgecs("models", "pairs")
    assert outcome.code == 0
    assert "there are no pairs" in outcome.err
