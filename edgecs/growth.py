"""What the tokens in the cache add to the time of a call.

Attention reads every cached token for every new one, so it can be most of a call: on a
CPU, 2,000 tokens may make a call of a small model seven times as long, and a call of 32
tokens twenty times. Drafts that pay at the start of a context then cost time later on.

It grows in steps: llama.cpp looks at whole blocks of cells.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 256  # cells


class Growth:
    """Seconds that depth adds, by width; zero until measured at two depths.

    Linear in the blocks between those that were measured and beyond the last.

    widths: of calls, 1 to `widths` tokens.
    """

    def __init__(self, widths: int) -> None:
        self._widths = widths
        self._curves: dict[int, NDArray[np.float64]] = {}  # [blocks][width - 1]
        self._cached: dict[int, list[float]] = {}  # the same at any number of blocks

    @property
    def known(self) -> bool:
        """Whether it was measured at two numbers of blocks."""
        return len(self._curves) > 1

    def measured(self, depth: int, more: Mapping[int, float]) -> None:
        """Takes what a depth adds to calls of some widths, the smallest depth first.

        Linear in the width between these, and beyond the widest as over all of them.
        """
        if not more:
            return
        blocks = _blocks(depth)
        if not self._curves and blocks > 1:
            self._curves[1] = np.zeros(self._widths)
        known = sorted(more)
        every = np.arange(1, self._widths + 1)
        curve = np.interp(every, known, [max(0.0, more[n]) for n in known])
        first, last = known[0], known[-1]
        if last > first:
            slope = max(0.0, (curve[last - 1] - curve[first - 1]) / (last - first))
            curve[last:] += slope * (every[last:] - last)
        self._curves[blocks] = curve
        self._cached.clear()

    def at(self, depth: int) -> list[float]:
        """Seconds of a call whose first token has so many before it, [width - 1]."""
        blocks = _blocks(depth)
        more = self._cached.get(blocks)
        if more is None:
            more = self._cached[blocks] = self._at(blocks).tolist()
        return more

    def _at(self, blocks: int) -> NDArray[np.float64]:
        known = sorted(self._curves)
        if not self.known or blocks <= known[0]:
            return np.zeros(self._widths)
        above = known[min(bisect_left(known, blocks), len(known) - 1)]
        below = known[known.index(above) - 1]
        more = (self._curves[above] - self._curves[below]) / (above - below)
        if blocks > above:  # goes on as between the last two, but never falls
            more = np.maximum(0.0, more)
        return self._curves[above] + (blocks - above) * more

    def state(self, factor: float = 1.0) -> dict[str, Any]:
        """What is kept of it, times a factor, for `from_state`."""
        return {str(n): (curve * factor).tolist() for n, curve in self._curves.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], widths: int) -> Growth:
        """What `state` gave; raises ValueError, TypeError or OverflowError else."""
        growth = cls(widths)
        for name, values in dict(state).items():
            curve = np.array(values, dtype=np.float64)
            # Written so that NaN is refused too.
            known = curve.shape == (widths,) and bool((curve >= 0).all())
            if int(name) < 1 or not known or not np.isfinite(curve).all():
                raise ValueError(f"growth at {name} blocks is not a curve")
            growth._curves[int(name)] = curve
        return growth


def _blocks(depth: int) -> int:
    """Blocks of cells that a call looks at behind so many tokens."""
    return depth // BLOCK + 1
