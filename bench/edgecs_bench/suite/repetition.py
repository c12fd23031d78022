"""Repetition loops in answers.

Copying is always right in a loop, so a speed-up on looping answers says little about
useful answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LONGEST = 32  # tokens of a period
TIMES = 3  # repetitions, including the first one
LEAST = 24  # tokens of a loop


def looping(tokens: Sequence[int]) -> NDArray[np.bool_]:
    """Whether each token is in a loop, bool [tokens].

    In a loop every token equals the one a period before it. A loop has a period of at
    most LONGEST tokens, at least TIMES periods and at least LEAST tokens.

    >>> int(looping([7, 8, 9] * 8 + [1, 2]).sum()), int(looping([7, 8, 9] * 7).sum())
    (24, 0)
    """
    ids = np.asarray(tokens, dtype=np.int64)
    inside = np.zeros(ids.size, dtype=np.bool_)
    for period in range(1, min(LONGEST, ids.size // TIMES) + 1):
        same = ids[period:] == ids[:-period]
        edges = np.flatnonzero(np.diff(same, prepend=False, append=False))
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            if end + period - start >= max(LEAST, TIMES * period):
                inside[start : end + period] = True
    return inside
