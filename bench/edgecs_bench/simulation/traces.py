"""Traces: answers of a target, and the proposals of drafters at every token.

A trace file is JSON Lines, compressed if its name ends in `.gz`. The first line
describes the recording:

    {"format": "edgecs-trace/1", "target": NAME, "drafters": [NAME, ...],
     "temperature": T, "seed": S, "draft_max": K}

every other line is one answer:

    {"id": ID, "category": NAME, "prompt": [ids], "output": [ids],
     "gap": [float, ...],
     "proposals": {DRAFTER: {"tokens": [[ids], ...], "confidences": [[p], ...]}}}

gap[i] is the difference of the two largest logits of the row that chose output[i];
tokens[i] is the drafter's proposal after prompt + output[:i], at most K tokens, with
the probability that it assigns to each. Max-Gram's proposals follow from the ids and
are not recorded. All lists except the prompt have the length of the output.

For drafts that are trees an answer may also have (`python -m edgecs_bench.ranks`)

    "ranked": [[ids], ...]
    "proposals": {DRAFTER: {..., "others": [[ids], ...], "shares": [[p], ...]}}

ranked[i] holds the target's best tokens of the row that chose output[i], the best
first; others[i] are the drafter's best tokens after tokens[i][0], with probabilities.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecs_bench.simulation.trace_lines import Line, read_lines, write_lines

FORMAT = "edgecs-trace/1"


@dataclass(frozen=True)
class Proposals:
    """The proposals of one drafter before every output token."""

    tokens: list[list[int]]
    confidences: list[list[float]]
    others: list[list[int]] = field(default_factory=list)  # empty: not recorded
    shares: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Trace:
    """One answer."""

    id: str
    category: str
    prompt: list[int]
    output: list[int]
    gap: list[float]
    proposals: dict[str, Proposals] = field(default_factory=dict)
    ranked: list[list[int]] = field(default_factory=list)  # empty: not recorded


@dataclass(frozen=True)
class Recording:
    """A file of traces."""

    target: str
    drafters: tuple[str, ...]
    temperature: float
    seed: int
    draft_max: int
    traces: tuple[Trace, ...]


def for_tuning(trace: Trace) -> bool:
    """Whether an answer is in the tuning half."""
    return not zlib.crc32(f"{trace.category}{trace.id}".encode()) % 2


def write_traces(path: Path, recording: Recording) -> None:
    """Writes a file atomically, compressed if its name ends in .gz."""
    head = {
        "format": FORMAT,
        "target": recording.target,
        "drafters": recording.drafters,
        "temperature": recording.temperature,
        "seed": recording.seed,
        "draft_max": recording.draft_max,
    }
    write_lines(path, (head, *map(_fields, recording.traces)))


def read_traces(path: Path) -> Recording:
    """Reads a file; raises click.UsageError that names an invalid line."""

    def recording(head: Line, lines: Iterator[Line]) -> Recording:
        traces = [_trace(line, head["drafters"]) for line in lines]
        return Recording(
            str(head["target"]),
            tuple(head["drafters"]),
            float(head["temperature"]),
            int(head["seed"]),
            int(head["draft_max"]),
            tuple(traces),
        )

    described = "edgecs_bench/simulation/traces.py"
    return read_lines(path, FORMAT, recording, what="a trace", described=described)


def _fields(trace: Trace) -> dict[str, Any]:
    fields = {
        "id": trace.id,
        "category": trace.category,
        "prompt": trace.prompt,
        "output": trace.output,
        "gap": [round(gap, 3) for gap in trace.gap],
        "proposals": {
            name: {
                "tokens": said.tokens,
                "confidences": _rounded(said.confidences),
                **(
                    {"others": said.others, "shares": _rounded(said.shares)}
                    if said.others
                    else {}
                ),
            }
            for name, said in trace.proposals.items()
        },
    }
    return {**fields, "ranked": trace.ranked} if trace.ranked else fields


def _rounded(rows: list[list[float]]) -> list[list[float]]:
    return [[round(p, 4) for p in row] for row in rows]


def _trace(line: dict[str, Any], drafters: Sequence[str]) -> Trace:
    n = len(line["output"])
    proposals = {
        name: Proposals(
            line["proposals"][name]["tokens"],
            line["proposals"][name]["confidences"],
            line["proposals"][name].get("others", []),
            line["proposals"][name].get("shares", []),
        )
        for name in drafters
    }
    ranked = line.get("ranked", [])
    lists = [line["gap"], *([ranked] if ranked else [])]
    for said in proposals.values():
        lists += [said.tokens, said.confidences]
        lists += [said.others, said.shares] if said.others or said.shares else []
    if not line["prompt"] or any(len(values) != n for values in lists):
        raise ValueError(
            "a list differs in length from the output, or the prompt is missing"
        )
    drafts = [draft for said in proposals.values() for draft in said.tokens]
    drafts += [ids for said in proposals.values() for ids in said.others]
    for tokens in (line["prompt"], line["output"], *drafts, *ranked):
        if not all(type(token) is int and 0 <= token < 1 << 31 for token in tokens):
            raise ValueError("a token id is not a number")
    if not all(ranked):
        raise ValueError("a row has no ranked token")
    for said in proposals.values():
        stated = (*said.confidences, *said.shares)
        if not all(0 <= p <= 1 for row in stated for p in row):
            raise ValueError("a confidence is not a probability")
        proposed = (*said.tokens, *said.others)
        if list(map(len, proposed)) != list(map(len, stated)):
            raise ValueError("not every proposed token has a confidence")
    return Trace(
        str(line["id"]),
        str(line["category"]),
        line["prompt"],
        line["output"],
        line["gap"],
        proposals,
        ranked,
    )
