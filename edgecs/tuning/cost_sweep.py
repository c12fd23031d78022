"""Careful cost curves: call times corrected for drift of the machine.

A call is measured as its ratio to the anchor: calls of a single token just before and
just after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np

from edgecs.calibrate.probe import Scratch
from edgecs.core.draft import LanguageModel
from edgecs.costs.cost_model import WIDEST
from edgecs.decoding.static_schedule import Clock

# chosen: interpolation of the anchor corrects for smaller drift.
DRIFT = 0.10  # largest accepted relative change of an anchor during a measurement
# chosen: the first answer of a chat, and a long conversation.
SHALLOW, DEEPEST = 64, 4096  # least and greatest depth of timed calls, in tokens
# chosen: drafts that a drafter reviews are short.
REVIEWS = (*range(1, 9), 12, 16)  # widths that are timed of a drafter
# chosen: doubled each time, as attention grows linearly.
_DEEPER = (512, 1024, 2048, DEEPEST)
# chosen: tiles need one depth, and the time that depth adds needs few widths.
_EVERY, _FEW = tuple(range(1, WIDEST + 1)), (1, 2, 4, 8, 16, 32)
# chosen: a frame ends before clock rates drift, and the median removes outliers.
FRAME, ANCHORS = 8, 3  # calls between two anchors, calls in an anchor
# chosen: a machine that drifts more often is reported as unsteady.
RETRIES = 4  # frames of a curve that may be repeated
# chosen: medians of few calls differ by less.
_CLEAR = 0.03  # least relative gain of a wider call for a tile


class Curve(NamedTuple):
    """Seconds of calls by width, after `depth` tokens."""

    depth: int
    seconds: dict[int, float]
    repeats: int  # calls per value
    discarded: int = 0  # frames repeated because the machine drifted
    unsure: float = 0.0  # share of the frames used although the machine drifted


def sweep(
    model: LanguageModel,
    depth: int,
    widths: Iterable[int],
    repeats: int,
    *,
    between: Callable[[], None] = lambda: None,
    clock: Clock = perf_counter,
) -> Curve:
    """Time calls of all widths in turn, framed by anchors.

    A value is the median of its ratios to the anchor, interpolated in time, times the
    median anchor. A frame in which the anchor changed by more than DRIFT is repeated,
    at most RETRIES times. between: called after every frame, may raise. Raises
    Cancelled if the model's cancel is set.
    """
    most = min(model.max_draft + 1, model.n_ctx - depth)
    order = [n for n in widths if 1 < n <= most]
    ratios: dict[int, list[float]] = {n: [] for n in order}
    with Scratch(model, depth) as cells:
        timer = Timer(cells, clock)
        timer.call(1)  # warm-up: the first call on new cells is slower
        anchors, discarded, unsure = [timer.anchor()], 0, 0
        frames = list(_frames(order, repeats))
        for frame in frames:
            while True:
                calls = [timer.call(n) for n in frame]
                anchors.append(timer.anchor())
                moments, (before, after) = zip(*anchors[-2:], strict=True)
                steady = max(before, after) <= (1 + DRIFT) * min(before, after)
                if steady or discarded == RETRIES:
                    break
                discarded += 1
            between()
            unsure += not steady
            for n, (moment, seconds) in zip(frame, calls, strict=True):
                anchor = float(np.interp(moment, moments, [before, after]))
                ratios[n].append(seconds / anchor)
    single = median(seconds for _, seconds in anchors)
    measured = {n: single * median(found) for n, found in ratios.items()}
    share = unsure / max(1, len(frames))
    return Curve(depth, {1: single, **measured}, repeats, discarded, share)


class Timer:
    """Calls on scratch cells, timed by a given clock."""

    def __init__(self, cells: Scratch, clock: Clock) -> None:
        self._cells, self._clock = cells, clock

    def call(self, width: int) -> tuple[float, float]:
        """The time at the middle of a call, and its seconds."""
        began = self._clock()
        self._cells.rows(0, width)
        ended = self._clock()
        return (began + ended) / 2, ended - began

    def anchor(self) -> tuple[float, float]:
        """The time at the middle of a few calls of one token, and their median."""
        calls = [self.call(1) for _ in range(ANCHORS)]
        return calls[ANCHORS // 2][0], median(seconds for _, seconds in calls)


def _frames(order: Sequence[int], repeats: int) -> Iterator[Sequence[int]]:
    """Frames of all widths, `repeats` times, every other time in reverse order."""
    for i in range(repeats):
        widths = order[::-1] if i % 2 else order
        for at in range(0, len(order), FRAME):
            yield widths[at : at + FRAME]


def places(n_ctx: int) -> list[tuple[int, tuple[int, ...]]]:
    """Depths at which a target is measured, with their widths, the shallowest first.

    >>> [depth for depth, widths in places(2048)]
    [64, 512, 1024]
    """
    shallow = max(1, min(SHALLOW, n_ctx - WIDEST))
    deeper = [(depth, _FEW) for depth in _DEEPER if depth + WIDEST <= n_ctx]
    return [(shallow, _EVERY), *deeper]


def tiles(seconds: Mapping[int, float]) -> dict[int, int]:
    """The cheapest wider width (a tile size) for widths that a wider call beats.

    >>> tiles({1: 1.0, 2: 1.56, 3: 2.08, 4: 1.68, 8: 2.89})
    {3: 4}
    """
    found = {}
    for n, value in seconds.items():
        wider = {m: s for m, s in seconds.items() if m > n}
        if wider and min(wider.values()) < (1 - _CLEAR) * value:
            found[n] = min(wider, key=wider.__getitem__)
    return found
