"""Tables of replays and simulations in the documentation, from their JSON files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgecs_bench.text_tables import markdown

_WAYS = {
    "chains": "chains",
    "trees": "trees",
    "sequoia": "Sequoia (nodes)",
    "dyspec": "DySpec (nodes)",
    "dyspec_threshold": "DySpec, threshold",
}
_OVERLAP = {
    "max_gram_alone": "Max-Gram alone",
    "beside_waits": "drafter waits",
    "beside_goes_on": "goes on",
    "same_device": "drafter on the GPU, waits",
}


def trees_in_replay(file: Path) -> str:
    """Output of `simulation.tree_gain`: a row for each curve."""
    kinds = ("chains", "chains_with_recycling", "trees")
    head = ["curve", "chains", "with recycling", "trees", "gain", "width"]
    rows = []
    for curve, row in _curves(file):
        speeds = [f"{row[kind]['over_plain']:.2f}" for kind in kinds]
        rows.append(
            [curve, *speeds, f"{row['gain']:.3f}", f"{row['trees']['width']:.1f}"]
        )
    return markdown([head, *rows])


def ways_to_choose_nodes(file: Path) -> str:
    """Output of `simulation.tree_algorithms`: a row for each curve."""
    rows = [
        [curve, *(_speed(row[way]) for way in _WAYS)] for curve, row in _curves(file)
    ]
    return markdown([["curve", *_WAYS.values()], *rows])


def overlap_speeds(file: Path) -> str:
    """Output of `simulation.overlap_gain`: the speeds of each target."""
    rows = [
        [
            row["target"],
            f"{row['call_ms']:.1f}",
            *(f"{row[name]:.2f}" for name in _OVERLAP),
        ]
        for row in json.loads(file.read_text(encoding="utf-8"))["targets"]
    ]
    return markdown([["target", "ms of a call", *_OVERLAP.values()], *rows])


def overlap_break_even(file: Path) -> str:
    """Output of `simulation.overlap_gain`: the share of right tokens that pays."""
    head = ["time of a drafted token", "right tokens needed, waits", "goes on"]
    rows = [
        [f"{row['step']:.1f}", _share(row["waits"]), _share(row["goes_on"])]
        for row in json.loads(file.read_text(encoding="utf-8"))["break_even"]
    ]
    return markdown([head, *rows])


def _curves(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The curves of all lines. Those of edgecs's kernels are named after a file."""
    for line in file.read_text(encoding="utf-8").splitlines():
        for name, row in json.loads(line)["curves"].items():
            short = name.lower().replace("-instruct", "")
            ours = short != name
            yield f"{short}, edgecs's kernels" if ours else short, row


def _speed(row: dict[str, Any]) -> str:
    chosen = f" ({row['setting']:g})" if "setting" in row else ""
    return f"{row['over_plain']:.2f}{chosen}"


def _share(share: float | None) -> str:
    return "none" if share is None else f"{share:.0%}"
