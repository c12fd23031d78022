"""Whether one rule is above another: more quality for the same calls of the target.

A rule with several alphas is a line of points, and between two of them lies what a
random choice between both would give. A rule dominates another if its line is nowhere
below the points of the other and above one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgecs_bench.cascades.ways import SPECULATIVE, kind

Point = tuple[float, float]
"""Calls of the target for each token, and quality."""

_SAME = 1e-9  # differences below are rounding


class Comparison(NamedTuple):
    """A rule against another one. Differences are of quality, the first rule's more.

    points: of the other rule within the calls of the first. above, below: at how many
    of them the first rule has more and less.
    """

    points: int
    above: int
    below: int
    least: float
    mean: float

    @property
    def dominates(self) -> bool:
        """Whether the first rule dominates the other."""
        return self.above > 0 and self.below == 0


def quality(row: Mapping[str, Any], name: str) -> float | None:
    """The quality of a row; name: agreement or passed, the share of problems."""
    if name == "passed":
        return row["passed"] / row["problems"] if row["problems"] else None
    value: float | None = row[name]
    return value


def points(rows: Sequence[Mapping[str, Any]], rule: str, name: str) -> list[Point]:
    """The points of a rule by its calls, of the rows of one temperature."""
    found = [
        (row["calls"], good)
        for row in rows
        if kind(row["way"]) == rule and (good := quality(row, name)) is not None
    ]
    return sorted(found)


def compare(
    rows: Sequence[Mapping[str, Any]], first: str, other: str, name: str
) -> Comparison | None:
    """The first rule against the other; None: no point of it can be compared.

    rows: of one temperature. The line of the first rule begins at speculative decoding,
    which every rule becomes as less and less is left to the small model.
    """
    line = dict(points(rows, SPECULATIVE, name))
    for calls, good in points(rows, first, name):
        line[calls] = max(good, line.get(calls, good))
    if not line:
        return None
    calls, goods = np.array(sorted(line.items())).T
    gaps = [
        float(np.interp(at, calls, goods)) - good
        for at, good in points(rows, other, name)
        if calls[0] <= at <= calls[-1]
    ]
    if not gaps:
        return None
    above, below = (sum(s * gap > _SAME for gap in gaps) for s in (1, -1))
    return Comparison(len(gaps), above, below, min(gaps), float(np.mean(gaps)))
