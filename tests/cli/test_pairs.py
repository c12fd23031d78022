"""Which drafters fit which models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from edgecs.testing.fakes import write_random_gguf
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


def test_without_models_there_is_a_hint(edgecs: Edgecs, cache: Path):
    outcome = edgecs("models", "pairs")
    assert outcome.code == 0
    assert "there are no pairs" in outcome.err
