"""The table of the load test in docs/server.md."""

from __future__ import annotations

import json
from pathlib import Path

from edgecs_bench.text_tables import markdown

_SERVERS = {"edgecs": "edgecs", "xllamacpp": "llama.cpp"}
_FIGURES = {
    "goodput": "tok/s",
    "first_p50": "first text, median",
    "first_p99": "first text, 99 % below",
    "gap_p50": "gap, median",
    "gap_p99": "gap, 99 % below",
}


def served(file: Path) -> str:
    """Output of `edgecs_bench.serving`: a row for each server and number of streams."""
    summary = json.loads(file.read_text(encoding="utf-8"))["summary"]
    lines = [
        [str(one["streams"]), shown, *(f"{one[name][key]:.0f}" for key in _FIGURES)]
        for one in summary
        for name, shown in _SERVERS.items()
    ]
    return markdown([["streams", "server", *_FIGURES.values()], *lines])
