"""An excerpt of a long context: what a drafter with a short one reads instead.

It has the first tokens, the end of the question, the chunks that are relevant to it,
and the last tokens, in their order. Relevance is BM25 (Robertson and Zaragoza, 2009) of
tokens and pairs of tokens in overlapping chunks, so no second model is needed. Source
of the idea: RAPID (arXiv 2502.20330), whose drafter reads chunks that embeddings
select.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Tokens

# chosen: a system prompt, or the beginning of a longer one.
_FIRST = 64  # tokens at the start that are kept
# chosen: with 48 the text before a short question counts, and fewer chunks are right.
_QUESTION = 32  # tokens before the answer that are kept, and searched for
# chosen: a paragraph.
_CHUNK = 64  # tokens
_STEP = _CHUNK // 2  # tokens from a chunk to the next, so that none splits a sentence
_SATURATION = 1.2  # k1 of BM25, its usual value; chunks are equally long, so no b
# chosen: pairs of frequent words are as rare as a name, and say less.
_PAIR = 0.5  # weight of a pair of tokens
# chosen: with 1, chunks repeat what the first one has, and rarer terms are missed.
_AGAIN = 0.5  # weight of a term for each chosen chunk that has it
_SHARE = 8  # the first tokens and the question are at most 1 / _SHARE each


def excerpt(tokens: Tokens, size: int, asked: int | None = None) -> Tokens:
    """The part of a context that is read instead of it, int32 [min(size, n)].

    At least half of it are the last tokens. The rest are the first tokens, the
    question, and the most relevant chunks; what they leave is given to the last tokens.
    tokens: int32 [n]. size: 1 or more. asked: number of tokens before the answer, if it
    has begun; None: all.

    >>> excerpt(np.arange(100, dtype=np.int32), 8).tolist()
    [0, 93, 94, 95, 96, 97, 98, 99]
    """
    n = tokens.size
    if size >= n:
        return tokens.copy()
    asked = n if asked is None else min(max(0, asked), n)
    kept = np.zeros(n, dtype=np.bool_)
    kept[: min(_FIRST, size // _SHARE)] = True
    kept[asked - min(asked, _QUESTION, size // _SHARE) : asked] = True
    kept[n - max(1, size // 2) :] = True
    left = size - int(kept.sum())
    for start in _relevant(tokens, asked, kept) if left else ():
        chunk = kept[start : start + _CHUNK]  # a view
        more = int(chunk.size - chunk.sum())
        if more > left:
            break
        chunk[:] = True
        left -= more
    if left:
        kept[np.flatnonzero(~kept)[-left:]] = True
    return tokens[kept]


def _relevant(tokens: Tokens, asked: int, kept: NDArray[np.bool_]) -> Iterator[int]:
    """The starts of chunks that share terms with the question, the best first.

    asked: see `excerpt`. kept: bool [n], tokens that no chunk has to have.
    """
    scores = np.concatenate(
        [
            weight * _bm25(_counts(terms, asked, tokens.size))
            for terms, weight in ((_single(tokens), 1.0), (_pairs(tokens), _PAIR))
        ]
    )
    in_step = np.logical_or.reduceat(kept, np.arange(0, tokens.size, _STEP))
    in_step[:-1] |= in_step[1:]  # a chunk is two steps long
    scores[:, in_step] = 0.0
    weights = np.ones(len(scores))
    while scores.any():
        best = int((weights @ scores).argmax())
        yield best * _STEP
        weights[scores[:, best] > 0] *= _AGAIN
        scores[:, best] = 0.0


def _single(tokens: Tokens) -> NDArray[np.int64]:
    return tokens.astype(np.int64)


def _pairs(tokens: Tokens) -> NDArray[np.int64]:
    """Each token and the one before it as one number; the first has none: -1."""
    pairs = np.full(tokens.size, -1, dtype=np.int64)
    pairs[1:] = (tokens[:-1].astype(np.int64) << 32) + tokens[1:]
    return pairs


def _counts(terms: NDArray[np.int64], asked: int, n: int) -> NDArray[np.int64]:
    """How often each searched term is in each chunk, [searched, chunks].

    terms: int64 [n], those of the context. Searched are the last ones before the answer
    and, as far as it goes, the last ones of the answer.
    """
    answer = terms[max(asked, n - _QUESTION) :]
    question = terms[max(0, asked - _QUESTION) : asked]
    searched = np.unique(np.concatenate([question, answer]))
    chunks = -(-n // _STEP)
    at = np.searchsorted(searched, terms).clip(max=searched.size - 1)
    found = np.flatnonzero(searched[at] == terms)
    places = at[found] * chunks + found // _STEP
    count = np.bincount(places, minlength=searched.size * chunks)
    count = count.reshape(searched.size, chunks)
    count[:, :-1] += count[:, 1:]
    return count


def _bm25(count: NDArray[np.int64]) -> NDArray[np.float64]:
    """The score of each term in each chunk, [terms, chunks]. count: the same shape."""
    having = (count > 0).sum(axis=1, keepdims=True)
    rare = np.log1p((count.shape[1] - having + 0.5) / (having + 0.5))
    return np.asarray(rare * count * (_SATURATION + 1) / (count + _SATURATION))
