"""Which widths are bit-identical to plain decoding, and which widths a round may have.

A row of logits can depend on the number of tokens in its call. `Classes` holds the
findings of probes by range of the context; `Limits` derives a tier for every range:

    strict    only widths whose rows are bit-identical to those of width 1
    numeric   any width; the target chooses from the rows as they are

There is no tier in between. Choosing again at width 1 where the two best tokens are
close does not restore the answer of plain decoding: the KV cells of earlier calls have
other bits too, and the choice depends on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecs.costs.cost_model import WIDEST
from edgecs.decoding.tiers import Exact, Tier

FIRST_BORDER = 256  # borders between ranges: 256, 512, 1024, ...: n_kv is padded to 256
WORTH = 0.97  # auto is strict where that keeps at least this share of the speed

Allowed = NDArray[np.bool_]
"""Permitted widths, [WIDEST], [n - 1] for n tokens; n = 1 is always permitted."""


def permitted(times: Sequence[float], allowed: Allowed) -> list[float]:
    """Seconds of calls by width, inf for those that are not permitted."""
    pairs = zip(times, allowed[: len(times)].tolist(), strict=True)
    return [seconds if may else math.inf for seconds, may in pairs]


def range_of(depth: int) -> tuple[int, int]:
    """The range of depths [start, end) that a depth belongs to.

    >>> range_of(0), range_of(255), range_of(300), range_of(512), range_of(1500)
    ((0, 256), (0, 256), (256, 512), (512, 1024), (1024, 2048))
    """
    if depth < FIRST_BORDER:
        return 0, FIRST_BORDER
    end = 1 << int(depth).bit_length()
    return end >> 1, end


@dataclass(frozen=True)
class Finding:
    """The result of one probe: the rows of calls that start at one depth."""

    same: frozenset[int]  # widths whose rows were those of width 1, bit for bit
    other: frozenset[int]  # widths with a different bit somewhere

    def both(self, more: Finding) -> Finding:
        """Combines two probes of one range: a width must pass both."""
        other = self.other | more.other
        return Finding((self.same | more.same) - other, other)


@dataclass
class Classes:
    """Findings by range of depth, and for calls that cross into a range."""

    inside: dict[int, Finding] = field(default_factory=dict)  # by start of the range
    crossing: dict[int, Finding] = field(default_factory=dict)  # by the border

    def add(self, depth: int, last: int, found: Finding) -> None:
        """Adds the finding of calls that begin at `depth` and end by cell `last`."""
        start, end = range_of(depth)
        where, key = (self.crossing, end) if last >= end else (self.inside, start)
        where[key] = where[key].both(found) if key in where else found

    def extend(self, n_ctx: int) -> None:
        """Extends the findings of a uniform target to all widths and depths.

        Does nothing if a probe found a difference, as then the target is not uniform.
        """
        found = [*self.inside.values(), *self.crossing.values()]
        if not found or any(one.other for one in found):
            return
        every, start = Finding(frozenset(range(2, WIDEST + 1)), frozenset()), 0
        while start < n_ctx:
            _, end = range_of(start)
            self.inside[start] = self.crossing[end] = every
            start = end

    def strict(self, depth: int) -> Allowed:
        """Widths that are bit-identical to plain decoding, from a depth on.

        A range that was not probed permits only width 1.
        """
        start, end = range_of(depth)
        allowed = _allowed(self.inside.get(start))
        beyond = _allowed(self.crossing.get(end))
        room = end - depth  # a call of more tokens crosses the border
        allowed[room:] &= beyond[room:]
        return allowed

    def state(self) -> dict[str, Any]:
        """The findings as plain values, see `from_state`."""
        return {
            name: {str(at): _finding_state(found) for at, found in findings.items()}
            for name, findings in vars(self).items()
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Classes:
        """The inverse of `state`. Raises ValueError, KeyError or TypeError."""
        parts = [
            {int(at): _finding(said) for at, said in dict(state[name]).items()}
            for name in ("inside", "crossing")
        ]
        return cls(*parts)


def _finding(said: Mapping[str, Any]) -> Finding:
    try:
        same, other = (frozenset(map(int, said[name])) for name in ("same", "other"))
    except OverflowError as error:  # JSON has integers of any size
        raise ValueError(f"a width is too large: {error}") from error
    if same & other or min(same | other, default=1) < 1:
        raise ValueError(f"{said} is not a valid finding")
    return Finding(same, other)


def _finding_state(found: Finding) -> dict[str, Any]:
    return {"same": sorted(found.same), "other": sorted(found.other)}


def _allowed(found: Finding | None) -> Allowed:
    allowed = np.zeros(WIDEST, dtype=np.bool_)
    allowed[0] = True
    if found:
        allowed[[n - 1 for n in found.same if n <= WIDEST]] = True
    return allowed


EVERY = np.ones(WIDEST, dtype=np.bool_)
EVERY.flags.writeable = False


class Limits:
    """The tier of every range of the context, decided on first use.

    keeps: share of the speed that remains with only these widths; auto is strict where
    it is at least WORTH. removable: tokens of a draft that the target can remove; parts
    of a longer one are computed again if it is rejected, so all smaller widths have to
    be exact too. None: any number. steady: depth up to which the target's cells lie in
    the order of the text; beyond it, probes say nothing of other calls. None: all.
    """

    def __init__(
        self,
        classes: Classes | None = None,
        exact: Exact = "numeric",
        *,
        keeps: Callable[[Allowed, int], float] | None = None,
        removable: int | None = None,
        steady: int | None = None,
    ) -> None:
        self._removable, self._steady = removable, steady
        self.classes = classes or Classes()
        self.exact = exact
        self._keeps = keeps or (lambda allowed, depth: float(allowed.all()))
        self._tiers: dict[int, Tier] = {}
        self._inside: dict[int, Allowed] = {}  # by start of the range

    def tier(self, depth: int) -> Tier:
        """The tier of rounds that start at a depth."""
        start, _ = range_of(depth)
        if start not in self._tiers:
            self._tiers[start] = self._decide(start)
        return self._tiers[start]

    def _decide(self, start: int) -> Tier:
        if self.exact != "auto":
            return self.exact
        known = self.classes.inside.get(start)
        if known is None or not self._is_steady(start):
            return "numeric"
        usable = self._again(_allowed(known))
        return "strict" if self._keeps(usable, start) >= WORTH else "numeric"

    def _is_steady(self, start: int) -> bool:
        return self._steady is None or range_of(start)[1] <= self._steady

    def _again(self, allowed: Allowed) -> Allowed:
        """Without widths whose draft may be computed again in a call of another one."""
        if self._removable is None:
            return allowed
        smaller = np.logical_and.accumulate(allowed)
        free = np.arange(allowed.size) <= self._removable  # index: length of the draft
        return allowed & (smaller | free)

    def _strict(self, depth: int) -> Allowed:
        if not self._is_steady(range_of(depth)[0]):
            return _allowed(None)
        return self._again(self.classes.strict(depth))

    def allowed(self, depth: int) -> Allowed:
        """Permitted widths of a round that starts at a depth."""
        if self.tier(depth) != "strict":
            return EVERY
        start, end = range_of(depth)
        if depth + WIDEST > end:  # a wide call would cross the border
            return self._strict(depth)
        if start not in self._inside:
            self._inside[start] = self._strict(depth)
        return self._inside[start]

    def fits(self, depth: int, width: int) -> int:
        """The largest permitted width up to `width`."""
        if width < 2 or self.tier(depth) != "strict":
            return width
        allowed = self.allowed(depth)[: min(width, WIDEST)]
        return int(np.flatnonzero(allowed)[-1]) + 1

    def describe_up_to(self, n_ctx: int) -> str:
        """The tiers along a whole context in words."""
        depths, depth = [], 0
        while depth < n_ctx:
            depths.append(depth)
            depth = range_of(depth)[1]
        return self.describe(depths)

    def describe(self, depths: Iterable[int]) -> str:
        """The tiers along a context in words, such as `strict (widths 2-8) to 512`."""
        told: list[tuple[str, int]] = []
        for depth in depths:
            start, end = range_of(depth)
            tier = self.tier(start)
            words: str = tier
            found = self.classes.inside.get(start)
            if tier == "strict":
                words += f" ({_widths(self._strict(start))})"
            elif self.exact != "numeric" and not found:
                words += " (not probed)"
            if told and told[-1][0] == words:
                told[-1] = words, end
            else:
                told.append((words, end))
        ends = [f"{words} to {end}" for words, end in told[:-1]]
        return ", then ".join([*ends, told[-1][0]]) if told else self.exact


def _widths(allowed: Allowed) -> str:
    """Widths as text: 2-4, 8."""
    same = (np.flatnonzero(allowed[1:]) + 2).tolist()
    if not same:
        return "width 1 only"
    parts: list[list[int]] = []
    for n in same:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    spans = [f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts]
    return "widths " + ", ".join(spans)
