"""Buckets of a copied token: match length, position, predictions of shorter grams."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import NamedTuple

# chosen: three tokens are rare enough for their chains to be short.
GRAM = 3  # matches of this length and longer are found through chains of occurrences
# chosen: matches longer than the last of _LENGTHS are in the same bucket.
LONGEST = 32  # matches are not compared beyond this many tokens

Opinion = tuple[bool, int, int]
"""Evidence for a token from the few tokens before it.

Whether the newest occurrence of these was followed by the token; how often in a row, up
to the newest, the same token followed; how often they occurred. (A plain tuple: dozens
are created in every round.)
"""


class Copy(NamedTuple):
    """Origin of the last proposal, and the evidence for and against it."""

    length: int  # tokens of the longest match, 0: nothing matched (a bigram, or none)
    # [token][n - 1] from the last n tokens; may be iterated once
    opinions: Iterable[tuple[Opinion | None, ...]]


# chosen, all edges: finer where few tokens differ; `edgecs_bench.prior` fits.
_LENGTHS = (2, 3, 4, 5, 6, 7, 9, 12, 17, 25)  # tokens of the match
DEPTHS = (1, 2, 3, 4, 8)  # tokens before it in the draft
_RUNS = (2, 3, 5)
_TIMES = (2, 4, 8, 20)


def bucket_count(edges: Sequence[float]) -> int:
    """Number of buckets between and beyond these edges."""
    return len(edges) + 1


_LENGTH = [bisect_right(_LENGTHS, n) for n in range(LONGEST + 64)]
DEPTH = [bisect_right(DEPTHS, n) for n in range(64)]
"""The bucket of each position in a draft."""
_DEPTH = [bucket_count(_LENGTHS) + bucket for bucket in DEPTH]
_SAID = 2 + bucket_count(_RUNS)  # no opinion, another opinion, the same opinion by run
_OPINION = _SAID + bucket_count(_TIMES)  # buckets of one gram length
_OPINIONS_FROM = bucket_count(_LENGTHS) + bucket_count(DEPTHS)
COPIED = _OPINIONS_FROM + GRAM * _OPINION
"""Number of buckets of copied tokens."""

# Buckets of an opinion by gram length: [n - 1][0: another token, else run], [times].
_MOST = 31  # larger runs and times share a bucket
_AGREES = [
    [
        _OPINIONS_FROM + n * _OPINION + (2 + bisect_right(_RUNS, run) if run else 1)
        for run in range(_MOST + 1)
    ]
    for n in range(GRAM)
]
_OFTEN = [
    [
        _OPINIONS_FROM + n * _OPINION + _SAID + bisect_right(_TIMES, times)
        for times in range(_MOST + 1)
    ]
    for n in range(GRAM)
]
_SILENT = [
    [_OPINIONS_FROM + n * _OPINION, _OPINIONS_FROM + n * _OPINION + _SAID]
    for n in range(GRAM)
]


def copied(copy: Copy) -> Iterator[list[int]]:
    """Buckets of the tokens of a copy, endlessly: match length, depth, grams.

    Tokens beyond the opinions use the last opinion.
    """
    opinions, matched, said = iter(copy.opinions), copy.length, [0] * (2 * GRAM)
    for depth in chain(range(64), repeat(63)):
        if (known := next(opinions, None)) is not None:
            said = _opinions(known)
        yield [_LENGTH[matched + depth] if matched else 0, _DEPTH[depth], *said]


def _opinions(opinions: Sequence[Opinion | None]) -> list[int]:
    columns: list[int] = []
    for n, opinion in enumerate(opinions):
        if opinion is None:
            columns += _SILENT[n]
            continue
        agrees, run, times = opinion
        run = (run if run < _MOST else _MOST) if agrees else 0
        columns.append(_AGREES[n][run])
        columns.append(_OFTEN[n][times if times < _MOST else _MOST])
    return columns
