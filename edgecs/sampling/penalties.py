"""Penalties for the tokens so far: repetition penalties and DRY, as in llama.cpp.

Pure functions of the row and of all tokens before it, including the prompt and the
drafted path; no state is kept between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Tokens
from edgecs.core.draft import Row

_LONGEST_BREAKER = 40  # bytes, as in llama.cpp
_LONGEST_TAIL = 20  # tokens

Breakers = dict[int, list[tuple[int, ...]]]
"""A token that breaks repetitions -> what must follow it for that (often nothing)."""


def window(tokens: Tokens, last: int) -> Tokens:
    """The last tokens that a penalty considers; all of them for -1."""
    return tokens if last < 0 else tokens[max(0, tokens.size - last) :]


def repetition(
    row: Row, tokens: Tokens, repeat: float, frequency: float, presence: float
) -> None:
    """Lowers, in place, the logits of `tokens` [n], the window.

    A positive logit is divided by `repeat` and a negative one multiplied; then
    `frequency` is subtracted for each occurrence, and `presence` once.
    """
    seen, counts = np.unique(tokens, return_counts=True)
    logits = row[seen]
    logits = np.where(logits <= 0, logits * np.float32(repeat), logits / repeat)
    row[seen] = logits - (counts * frequency + presence)


def dry(
    row: Row,
    tokens: Tokens,
    breakers: Breakers,
    *,
    multiplier: float,
    base: float,
    allowed: int,
) -> None:
    """Don't Repeat Yourself: lowers, in place, tokens that extend a repetition.

    A token that followed an earlier copy of the last L tokens, L at least `allowed`,
    loses multiplier * base ** (L - allowed). Only tokens after the last breaker count;
    a token that contains a whole breaker is never penalised.
    """
    limit = _until_breaker(tokens, breakers)
    if tokens.size <= allowed or limit < allowed:
        return
    ends, lengths = repetitions(tokens, limit)
    long_enough = lengths >= allowed
    longest: dict[int, int] = {}
    following = tokens[ends[long_enough] + 1].tolist()
    for token, length in zip(following, lengths[long_enough].tolist(), strict=True):
        if () not in breakers.get(token, ()):
            longest[token] = max(length, longest.get(token, 0))
    most = 88.7228391 / np.log(base) if base > 1.000001 else 0.0  # float32's exponent
    for token, length in longest.items():
        exponent = length - allowed
        if most > 0:
            exponent = min(exponent, int(most))
        row[token] -= np.float32(multiplier * base**exponent)


def repetitions(tokens: Tokens, limit: int) -> tuple[NDArray[np.intp], Tokens]:
    """Where earlier copies of the last tokens end, and how long they are.

    Returns positions [n] before the last one and the lengths [n], at most `limit`, of
    the common suffix that tokens up to there have with all tokens. O(n) for each step
    of the longest length.

    >>> ends, lengths = repetitions(np.array([1, 2, 3, 9, 2, 3]), 99)
    >>> ends.tolist(), lengths.tolist()
    ([2], [2])
    """
    last = tokens.size - 1
    ends = np.flatnonzero(tokens[:last] == tokens[last]) if limit else np.empty(0, int)
    lengths = np.ones(ends.size, dtype=np.int32)
    alive = np.arange(ends.size)
    for length in range(1, limit):
        alive = alive[ends[alive] >= length]
        alive = alive[tokens[ends[alive] - length] == tokens[last - length]]
        if not alive.size:
            break
        lengths[alive] += 1
    return ends, lengths


def _until_breaker(tokens: Tokens, breakers: Breakers) -> int:
    """How many of the last tokens come after the newest breaker."""
    for back, token in enumerate(reversed(tokens.tolist())):
        tails = [
            len(tail)
            for tail in breakers.get(token, ())
            if len(tail) <= back
            and tuple(tokens[tokens.size - back :][: len(tail)]) == tail
        ]
        if tails:
            return back - max(tails)
    return tokens.size


def sequence_breakers(
    texts: Sequence[str],
    pieces: Sequence[bytes],
    encode: Callable[[str], Sequence[int]],
) -> Breakers:
    """The tokens that end a repetition because they contain, or begin, a breaker.

    pieces: the text of every token. A token that ends with the beginning of a breaker
    counts when the tokens of the breaker's rest follow.
    """
    found: Breakers = {}
    for text in texts:
        wanted = text.encode()[:_LONGEST_BREAKER]
        for token, piece in enumerate(pieces) if wanted else ():
            for tail in _tails(wanted, piece, encode):
                tails = found.setdefault(token, [])
                if tail not in tails:
                    tails.append(tail)
    return found


def _tails(
    wanted: bytes, piece: bytes, encode: Callable[[str], Sequence[int]]
) -> list[tuple[int, ...]]:
    """Tokens that complete `wanted` after `piece`; none are needed if it is whole."""
    if wanted in piece:
        return [()]
    lengths = range(1, min(len(wanted) - 1, len(piece)) + 1)
    rests = [wanted[n:] for n in lengths if piece.endswith(wanted[:n])]
    return [
        tuple(int(t) for t in encode(rest.decode(errors="replace"))[:_LONGEST_TAIL])
        for rest in rests
    ]
