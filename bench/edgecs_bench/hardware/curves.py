"""Cost curves for replay: call times of a target by width, and of a drafter."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from edgecs.core.reading import read_given
from edgecs.costs.cost_model import WIDEST

Times = NDArray[np.float64]
"""Milliseconds by width, [WIDEST]; index n - 1 is a call of n tokens."""

DRAFTER_MS = 21.4  # Qwen2.5-Coder-0.5B Q4_K_M, one token
DRAFTER_CURVE = {1: 1.0, 2: 1.7, 3: 2.4, 4: 3.0, 8: 5.1, 16: 6.2}
READING_MS = 3.0  # the same, for each token of a prompt
_LARGEST = 1 << 20  # bytes of a file of curves
BLOCK = 256  # cells that llama.cpp processes together for one token, see `Curve.call`


class Curve(NamedTuple):
    """Call times of one target on one machine."""

    name: str
    times: Times
    overhead: float  # milliseconds of edgecs per round
    settling: float = 0.0  # added to the first call of one token after a wider one
    depth: int = 0  # tokens in the cache during the measurement
    deeper: tuple[tuple[int, Times], ...] = ()  # empty: depth costs nothing

    def round(self, width: int) -> float:
        """Milliseconds of a round with one call."""
        return float(self.times[width - 1]) + self.overhead

    def call(self, width: int, depth: int) -> float:
        """Milliseconds of a call of `width` tokens at a depth.

        The time of wider calls grows linearly with the depth. That of one token, whose
        cells are divided among the threads, grows in steps (measured between 512 and
        1,200 cells).
        """
        shallow = float(self.times[width - 1])
        if not self.deeper:
            return shallow
        unit = BLOCK if width == 1 else 1
        known = {self.depth // unit: shallow}
        known |= {there // unit: float(ms[width - 1]) for there, ms in self.deeper}
        return between(known, depth // unit)


def between(known: Mapping[int, float], at: int) -> float:
    """Linear interpolation between known values, which are sorted by place.

    Before the first place it is the first value; beyond the last one it continues the
    last slope, unless that falls.

    >>> [between({1: 10.0, 3: 14.0, 4: 12.0}, at) for at in (0, 2, 9)]
    [10.0, 12.0, 12.0]
    """
    places = [*known]
    if len(places) == 1 or at <= places[0]:
        return known[places[0]]
    above = min(bisect_left(places, at), len(places) - 1)
    start, end = places[above - 1], places[above]
    slope = (known[end] - known[start]) / (end - start)
    if at > end:
        slope = max(0.0, slope)
    return known[end] + (at - end) * slope


class Steps(NamedTuple):
    """Call times of a drafter."""

    times: Times
    reading: float  # milliseconds for each token of a prompt


def curve(
    name: str, single: float, relative: Mapping[int, float], overhead: float
) -> Curve:
    """A curve from times at some widths, relative to a single token's milliseconds.

    It is linear between the widths and continues the last slope beyond them.
    """
    widths, values = zip(*sorted(relative.items()), strict=True)
    every = np.arange(1, WIDEST + 1)
    times = np.interp(every, widths, values)
    if widths[-1] < WIDEST:
        slope = (values[-1] - values[-2]) / (widths[-1] - widths[-2])
        beyond = every > widths[-1]
        times[beyond] = values[-1] + max(slope, 0.05) * (every[beyond] - widths[-1])
    return Curve(name, times * single, overhead)


# Relative times by width on a 2-core AMD EPYC; `flat` is like a GPU.
SMALL, LARGE = 0.36, 0.42  # overhead with a vocabulary of 49,152 and of 151,936
CURVES = (
    curve(
        "qwen-q4_k_m",
        38.8,
        {1: 1, 2: 1.74, 3: 2.38, 4: 2.98, 5: 3.64, 8: 5.13, 12: 6.25, 16: 6.05},
        LARGE,
    ),
    curve(
        "qwen-q4_0",
        35.7,
        {1: 1, 2: 1.56, 3: 2.08, 4: 1.68, 5: 2.26, 8: 2.89, 12: 3.97, 16: 4.17},
        LARGE,
    ),
    curve(
        "qwen-q8_0",
        60.4,
        {1: 1, 2: 2.26, 3: 2.81, 4: 3.37, 5: 4.69, 8: 3.23, 12: 4.19, 16: 5.41},
        LARGE,
    ),
    curve(
        "qwen-bf16",
        71.5,
        {1: 1, 2: 1.41, 3: 1.59, 4: 1.73, 5: 1.86, 8: 2.2, 12: 2.73, 16: 2.94},
        LARGE,
    ),
    curve(
        "smollm2-q4_1",
        7.9,
        {1: 1, 2: 1.71, 3: 2.22, 4: 2.62, 8: 3.85, 16: 6.68},
        SMALL,
    ),
    curve(
        "smollm2-bf16",
        10.6,
        {1: 1, 2: 1.21, 3: 1.38, 4: 1.53, 8: 2.13, 16: 3.01},
        SMALL,
    ),
    curve("flat", 20.0, {1: 1, 2: 1.02, 4: 1.05, 8: 1.1, 16: 1.2, 32: 1.4}, LARGE),
)


def read_curves(path: Path) -> tuple[Curve, ...]:
    """Curves of a JSON file: [{"name", "ms": {width: ms}, "overhead_ms"}, ...]."""
    try:
        found = tuple(map(_read, json.loads(read_given(path, _LARGEST))))
        if not found:
            raise ValueError("the list is empty")
        return found
    except (
        OSError,
        ValueError,
        RecursionError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise click.UsageError(f"{path} has no valid curves: {error!r}") from error


def _read(fields: Mapping[str, Any]) -> Curve:
    times = {int(n): float(ms) for n, ms in fields["ms"].items()}
    overhead = float(fields["overhead_ms"])
    if len(times) < 2 or min(times) != 1 or max(times) > WIDEST:
        raise ValueError(f"times at 1 and at wider widths up to {WIDEST} are needed")
    if not all(0 < ms < math.inf for ms in times.values()) or not 0 <= overhead < 1e9:
        raise ValueError("milliseconds must be positive numbers")
    return curve(str(fields["name"]), 1.0, times, overhead)
