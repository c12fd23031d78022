"""Reproducible noise: Gumbel draws by (seed, position, token).

The argmax of log-probabilities plus independent Gumbel noise is a sample of the
distribution (the Gumbel-max trick). Because the noise is a hash and not a stream, the
target, its drafters and a second run get the same draw for the same token at the same
position.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15  # odd, so that counters map to distinct words
_MASK = (1 << 64) - 1
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_PIECE = 8192  # words: 64 KiB

Words = NDArray[np.uint64]


def key(seed: int, position: int) -> int:
    """The 64-bit word that all draws at one position of one seed come from."""
    return _mix(_mix(seed + _GOLDEN) + position * _GOLDEN)


def gumbel(key: int, tokens: NDArray[np.integer]) -> NDArray[np.float64]:
    """Standard Gumbel noise of tokens (ids of the target), float64 [n].

    >>> gumbel(key(seed=1, position=2), np.array([3, 4])).round(4).tolist()
    [0.5302, 0.2058]
    """
    return of_words(words(key, counters(tokens)))


def counters(tokens: NDArray[np.integer]) -> Words:
    """The part of a draw that depends on the token alone; worth caching."""
    return (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)


def words(key: int, counters: Words) -> Words:
    """The hashes of the draws, uint64 [n]: a larger word is a larger draw.

    The finaliser of SplitMix64 (Steele et al., 2014) in place, in pieces that stay in
    the cache.
    """
    out = counters + np.uint64(key)
    shifted = np.empty(min(out.size, _PIECE), dtype=np.uint64)
    for start in range(0, out.size, _PIECE):
        z = out[start : start + _PIECE]
        s = shifted[: z.size]
        for shift, factor in ((30, _FIRST), (27, _SECOND)):
            np.right_shift(z, np.uint64(shift), out=s)
            np.bitwise_xor(z, s, out=z)
            np.multiply(z, np.uint64(factor), out=z)
        np.right_shift(z, np.uint64(31), out=s)
        np.bitwise_xor(z, s, out=z)
    return out


def of_words(words: Words) -> NDArray[np.float64]:
    """Gumbel noise of hashes, float64 [n]."""
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def least_word(noise: float) -> int:
    """A word below all words whose draw is `noise` or more."""
    uniform = np.exp(-np.exp(-noise))
    return max(0, int(uniform * (1 - 2.0**-40) * 2.0**64) - 1)


def stream(key: int, number: int) -> int:
    """The word of another stream of draws at the same position; number: 1 or more.

    Its draws are independent of those of `key`.
    """
    return _mix(_mix(key) + number * _GOLDEN)


def coin(key: int) -> float:
    """A uniform draw of the position itself, in (0, 1): no token has counter 0."""
    return ((_mix(key) >> 11) + 0.5) * 2.0**-53


def _mix(z: int) -> int:
    z &= _MASK
    z = ((z ^ z >> 30) * _FIRST) & _MASK
    z = ((z ^ z >> 27) * _SECOND) & _MASK
    return z ^ z >> 31
