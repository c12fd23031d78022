"""Log-probabilities of tokens, from the target's unmodified row.

That is before bias, grammar, penalties, samplers and temperature (llama-server's
`n_probs` without `post_sampling_probs`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgecs.core.draft import Row


class Logprobs(NamedTuple):
    """Natural logarithms, of the chosen token and of the most likely ones.

    top: (id, log-probability), the most likely first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


def logprobs_of(row: Row, token: int, most: int) -> Logprobs:
    """Logprobs of a token and of the `most` likely ones in a row [vocabulary].

    >>> found = logprobs_of(np.log(np.array([0.5, 0.125, 0.375])), 1, most=2)
    >>> round(float(np.exp(found.logprob)), 3), [id for id, _ in found.top]
    (0.125, [0, 2])
    """
    wide = row.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    best = np.argsort(-wide, kind="stable")[:most] if most else np.empty(0, np.int64)
    top = tuple((int(i), float(wide[i])) for i in best)
    return Logprobs(float(wide[token]), top)
