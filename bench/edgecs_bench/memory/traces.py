"""Traces of scenarios: answers with their place in the life of a user.

A trace file is JSON Lines, compressed with gzip. The first line is

    {"format": "edgecs-memory-trace/1", "target": NAME}

every other line is one answer, in the order of time within its scenario:

    {"category", "name", "tuning", "session", "conversation", "turn",
     "prompt": [ids], "output": [ids], "ranked": [[ids], ...]}

ranked[i] holds the target's best tokens of the row that chose output[i], the best
first. The prompt is the whole conversation so far. The scenario's fields are those of
`edgecs_bench.memory.scenarios`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgecs_bench.memory.scenarios import Place
from edgecs_bench.simulation.trace_lines import read_lines, write_lines
from edgecs_bench.simulation.traces import Trace

FORMAT = "edgecs-memory-trace/1"


class Answer(NamedTuple):
    """One answer of the target."""

    category: str
    name: str  # of the scenario
    tuning: bool
    place: Place
    prompt: list[int]
    output: list[int]
    ranked: list[list[int]]

    @property
    def scenario(self) -> tuple[str, str]:
        """Category and name."""
        return self.category, self.name

    def trace(self) -> Trace:
        """The answer as the replay's trace without drafters."""
        name = f"{self.name}/{'/'.join(map(str, self.place))}"
        gap = [0.0] * len(self.output)
        return Trace(
            name, self.category, self.prompt, self.output, gap, ranked=self.ranked
        )


def write_answers(path: Path, target: str, answers: Sequence[Answer]) -> None:
    """Writes a file atomically."""
    head = {"format": FORMAT, "target": target}
    write_lines(path, (head, *map(_fields, answers)))


def read_answers(path: Path) -> tuple[str, list[Answer]]:
    """The target and its answers; raises click.UsageError for an invalid line."""
    return read_lines(
        path,
        FORMAT,
        lambda head, lines: (str(head["target"]), [*map(_answer, lines)]),
        what="a trace of scenarios",
        described="edgecs_bench/memory/traces.py",
    )


def _fields(answer: Answer) -> dict[str, Any]:
    fields = answer._asdict()
    place = fields.pop("place")
    return {**fields, **place._asdict()}


def _answer(line: dict[str, Any]) -> Answer:
    prompt, output, ranked = line["prompt"], line["output"], line["ranked"]
    if not prompt or len(output) != len(ranked) or not all(ranked):
        raise ValueError("a row has no ranked token, or the prompt is missing")
    for tokens in (prompt, output, *ranked):
        if not all(type(token) is int and 0 <= token < 1 << 31 for token in tokens):
            raise ValueError("a token id is not a number")
    place = Place(*(int(line[name]) for name in Place._fields))
    tuning = bool(line["tuning"])
    return Answer(
        str(line["category"]), str(line["name"]), tuning, place, prompt, output, ranked
    )
