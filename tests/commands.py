"""Commands that tests run, and what is promised of their errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.conftest import Outcome

Edgecs = Callable[..., Outcome]


def generate(edgecs: Edgecs, model: Path, *options: object) -> Outcome:
    """One answer; what is not about chance is greedy."""
    fixed = ("-c", 512, "-p", "hello, hello", "--temp", 0)
    return edgecs("generate", "-m", model, *fixed, *options)


def one_line(outcome: Outcome, code: int, *parts: str) -> None:
    """The promise for bad input."""
    assert outcome.code == code, outcome
    assert outcome.out == ""
    lines = [line for line in outcome.err.splitlines() if " · speculation" not in line]
    assert len(lines) == 1, outcome.err
    for part in parts:
        assert part in lines[0]
