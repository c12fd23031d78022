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

import gzip
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from edgecs.core.reading import regular_size
from edgecs_bench.memory.scenarios import Place
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
    part = path.with_name(f".part-{path.name}")
    with gzip.open(part, "wt", encoding="utf-8") as file:
        for line in ({"format": FORMAT, "target": target}, *map(_fields, answers)):
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
    os.replace(part, path)


def read_answers(path: Path) -> tuple[str, list[Answer]]:
    """The target and its answers; raises click.UsageError for an invalid line."""
    number = 1
    try:
        regular_size(path)
        with gzip.open(path, "rt", encoding="utf-8") as file:
            head = json.loads(next(file, "{}"))
            if head["format"] != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            answers = []
            for number, line in enumerate(file, 2):  # noqa: B007, for the message
                answers.append(_answer(json.loads(line)))
            return str(head["target"]), answers
    except (
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        LookupError,
        TypeError,
        RecursionError,
    ) as error:
        raise click.UsageError(
            f"{path}, line {number}: not a trace of scenarios: {error!s} (the format "
            "is described in edgecs_bench/memory/traces.py)"
        ) from error


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
