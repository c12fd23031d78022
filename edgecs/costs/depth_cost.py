"""The time that the tokens in the KV cache add to a call.

Attention reads every cached token for every new one, so it can dominate a call: on a
CPU, 2,000 cached tokens may make a call of a small model seven times as long, and a
call of 32 tokens twenty times. A draft width that pays at the start of a context can
then lose time later.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# chosen: a quarter of the step in which llama.cpp's calls grow, in cells.
_BUCKET = 64  # depths in one bucket share an array of times


class Growth:
    """Seconds that depth adds, by width; zero until measured at two depths.

    Linear between the measured depths and beyond the last one.

    widths: calls have 1 to `widths` tokens.
    """

    def __init__(self, widths: int) -> None:
        self._widths = widths
        self._curves: dict[int, NDArray[np.float64]] = {}  # [depth][width - 1]
        self._cached: dict[int, list[float]] = {}  # [bucket][width - 1]

    @property
    def known(self) -> bool:
        """Whether it was measured at two depths."""
        return len(self._curves) > 1

    def measured(self, depth: int, more: Mapping[int, float]) -> None:
        """Record the seconds that a depth adds by width, the smallest depth first.

        Linear in the width between these; beyond the widest with their average slope.
        """
        if not more:
            return
        if not self._curves and depth:
            self._curves[0] = np.zeros(self._widths)
        known = sorted(more)
        every = np.arange(1, self._widths + 1)
        curve = np.interp(every, known, [max(0.0, more[n]) for n in known])
        first, last = known[0], known[-1]
        if last > first:
            slope = max(0.0, (curve[last - 1] - curve[first - 1]) / (last - first))
            curve[last:] += slope * (every[last:] - last)
        self._curves[depth] = curve
        self._cached.clear()

    def at(self, depth: int) -> list[float]:
        """Seconds that depth adds, [width - 1], at the start of the depth's bucket."""
        bucket = depth // _BUCKET
        more = self._cached.get(bucket)
        if more is None:
            more = self._cached[bucket] = self._at(bucket * _BUCKET).tolist()
        return more

    def _at(self, depth: int) -> NDArray[np.float64]:
        depths = sorted(self._curves)
        if not self.known or depth <= depths[0]:
            return np.zeros(self._widths)
        above = depths[min(bisect_left(depths, depth), len(depths) - 1)]
        below = depths[depths.index(above) - 1]
        more = (self._curves[above] - self._curves[below]) / (above - below)
        if depth > above:  # extrapolates from the last two, but never decreases
            more = np.maximum(0.0, more)
        return self._curves[above] + (depth - above) * more

    def state(self, factor: float = 1.0) -> dict[str, Any]:
        """The curves times a factor, for `from_state`."""
        return {str(d): (curve * factor).tolist() for d, curve in self._curves.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], widths: int) -> Growth:
        """Restore `state`; raises ValueError, TypeError or OverflowError otherwise."""
        growth = cls(widths)
        for name, values in dict(state).items():
            curve = np.array(values, dtype=np.float64)
            # Written so that NaN is rejected too.
            known = curve.shape == (widths,) and bool((curve >= 0).all())
            if int(name) < 0 or not known or not np.isfinite(curve).all():
                raise ValueError(f"growth at depth {name} is not a curve")
            growth._curves[int(name)] = curve
        return growth
