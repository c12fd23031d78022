"""The truncating samplers of llama.cpp as pure functions, in numpy.

A distribution is a set of candidates and their logits. Each function takes candidates
and returns those that survive; none of them is random. The first filter of a chain
works on the whole row and sorts only as much as needed. Probabilities that decide who
survives are float32 and summed in order, as in llama.cpp, so that the cut-off is the
same.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecs.core.draft import Row

Ids = NDArray[np.intp]

_FEW = 256  # candidates to start with if the number needed is unknown
_GROUP = 64


class Candidates(NamedTuple):
    """Tokens that may still be chosen, the most probable first, ties by id."""

    ids: Ids  # [n]
    logits: NDArray[np.float32]  # [n], descending

    def first(self, n: int) -> Candidates:
        """The n most probable ones."""
        return Candidates(self.ids[:n], self.logits[:n])

    def probabilities(self) -> NDArray[np.float32]:
        """Their probabilities at temperature 1, float32 [n]."""
        weights = np.exp(self.logits - self.logits[0])
        law: NDArray[np.float32] = weights / _total(weights)
        return law


def top(row: Row, k: int) -> Candidates:
    """The k tokens with the largest finite logits, fewer if there are no more.

    The k-th largest maximum of disjoint groups is a lower bound of the k-th largest
    logit.
    """
    groups = row.size // _GROUP
    floor = -math.inf
    if 0 < k < groups:
        maxima = row[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
        floor = float(np.partition(maxima, groups - k)[groups - k])
    ids = np.flatnonzero(row >= floor if floor > -math.inf else row > floor)
    return _sorted(ids, row).first(k)


def _sorted(ids: Ids, row: Row) -> Candidates:
    logits = row[ids]
    order = np.argsort(-logits, kind="stable")  # ids ascend, so ties keep their order
    return Candidates(ids[order], logits[order])


def top_n_sigma(row: Row, n: float) -> Row:
    """Drops logits more than n standard deviations below the largest."""
    finite = row[row > -np.inf].astype(np.float64)
    least = row.max() - n * finite.std()
    kept: Row = np.where(row >= least, row, np.float32(-np.inf))
    return kept


def typical(candidates: Candidates, p: float) -> Candidates:
    """Locally typical sampling: surprise nearest to the entropy first, mass up to p."""
    law = candidates.probabilities()
    surprise = -np.log(np.maximum(law, np.finfo(np.float32).tiny))
    distance = np.abs(surprise - _total(law * surprise))
    order = np.argsort(distance, kind="stable")
    count = int((law[order].cumsum() <= np.float32(p)).sum()) + 1
    kept = np.sort(order[:count])
    return Candidates(candidates.ids[kept], candidates.logits[kept])


def top_p(candidates: Candidates, p: float) -> Candidates:
    """The fewest most probable tokens with mass p or more."""
    return candidates.first(_until(candidates.probabilities(), p))


def top_p_of_row(row: Row, p: float) -> Candidates:
    """`top_p` of every token, sorting only as many as needed."""
    largest = row.max()
    total = _total(np.exp(row - largest))
    count = _FEW
    while True:
        found = top(row, count)
        law = np.exp(found.logits - largest) / total
        if _total(law) >= p or found.ids.size < count or count >= row.size:
            return found.first(_until(law, p))
        count *= 8


def _until(law: NDArray[np.float32], p: float) -> int:
    """How many leading probabilities it takes to reach p."""
    return int((law.cumsum() < np.float32(p)).sum()) + 1


def _total(values: NDArray[np.float32]) -> np.float32:
    """The sum, one value after the other; numpy's own adds in pairs."""
    total: np.float32 = values.cumsum()[-1]
    return total


def min_p(candidates: Candidates, p: float) -> Candidates:
    """Tokens at least p times as probable as the most probable one."""
    least = candidates.logits[0] + np.float32(math.log(p))
    return candidates.first(int((candidates.logits >= least).sum()))


def min_p_of_row(row: Row, p: float) -> Candidates:
    """`min_p` of every token, sorting only the survivors."""
    least = row.max() + np.float32(math.log(p))
    return _sorted(np.flatnonzero(row >= least), row)


def xtc(candidates: Candidates, threshold: float) -> Candidates:
    """Exclude top choices: keep only the last of the tokens above the threshold."""
    above = int((candidates.probabilities() >= threshold).sum())
    drop = max(0, above - 1)
    return Candidates(candidates.ids[drop:], candidates.logits[drop:])
