"""Converts samples to training data: a small vocabulary, and batches.

A batch holds windows of texts of one length: the end of a prompt, whose states are
unknown, and a part of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgecs.errors import DistillError
from edgecs_convert.distill.samples import Sample

Array = TypeVar("Array")


class Vocabulary:
    """The target's ids in a drafter's vocabulary, as rows 0, 1, 2, ...

    ids: int32 [rows]. Row `rows` represents all others.
    """

    def __init__(self, ids: NDArray[np.int32], size: int) -> None:
        self.ids = ids
        self.rows = int(ids.size)
        self._inverse = np.full(size, self.rows, dtype=np.int64)
        self._inverse[ids] = np.arange(self.rows)

    def rows_of(self, tokens: NDArray[np.int32]) -> NDArray[np.int64]:
        """The rows of the target's tokens."""
        return self._inverse[tokens]

    def coverage(self, samples: Sequence[Sample]) -> float:
        """The share of the tokens of answers that are in the vocabulary."""
        known = total = 0
        for sample in samples:
            rows = self.rows_of(sample.tokens[sample.start :])
            known += int((rows < self.rows).sum())
            total += rows.size
        return known / max(1, total)


def choose_vocabulary(
    samples: Sequence[Sample],
    rows: int,
    size: int,
    always: Sequence[int] = (),
    among: NDArray[np.int32] | None = None,
) -> Vocabulary:
    """The tokens that a target uses most often, and the required ones.

    size: of the target's vocabulary. among: the ids that may be chosen, all by default.
    Likely alternatives get a small weight, which decides among rare tokens. Raises
    DistillError without samples.
    """
    if not samples:
        raise DistillError("there are no samples to choose a vocabulary from")
    counts = np.zeros(size)
    for sample in samples:
        np.add.at(counts, sample.tokens[sample.start :], 1.0)
        np.add.at(counts, sample.top_ids[:, 1:4].ravel(), 0.02)
        np.add.at(counts, sample.tokens[: sample.start], 0.02)
    counts[list(always)] = np.inf
    if among is not None:
        allowed = np.zeros(size, dtype=np.bool_)
        allowed[among] = True
        counts[~allowed] = -1
        rows = min(rows, int(allowed.sum()))
    order = np.argsort(-counts, kind="stable")[: min(rows, size)]
    return Vocabulary(np.sort(order).astype(np.int32), size)


class Batch(NamedTuple, Generic[Array]):
    """Windows of texts, as arrays of numpy or of PyTorch."""

    tokens: Array  # int64 [texts, length]: rows of a vocabulary
    ids: Array  # the same as the target's tokens, 0 after the end of a text
    states: Array  # float32 [texts, length, width]: state that chose the token
    next_states: Array  # the same after the token
    top_rows: Array  # int64 [texts, length, k]: of the token after it
    top_logits: Array  # float32 [texts, length, k], -inf for unknown tokens
    counts: Array  # bool [texts, length]: training positions


class Window(NamedTuple):
    """A part of a sample: tokens from `begin`, training positions from `first`."""

    sample: Sample
    begin: int
    first: int
    end: int


def windows(samples: Sequence[Sample], length: int, before: int) -> list[Window]:
    """All answers, split into windows of at most `length` tokens.

    before: tokens of context before the training positions, if there are as many.
    """
    found = []
    for sample in samples:
        first, last = (
            sample.start,
            sample.tokens.size - 1,
        )  # the last token has no successor
        while first < last:
            # A head of llama.cpp begins with the first token that has a state.
            begin = max(int(sample.stated == 0), first - before)
            end = min(last, begin + length)
            found.append(Window(sample, begin, first, end))
            first = end
    return found


def batches(
    every: Sequence[Window],
    vocabulary: Vocabulary,
    length: int,
    texts: int,
    seed: int | None,
) -> Iterator[Batch[NDArray[Any]]]:
    """Batches of windows, shuffled by the seed; None: in the given order."""
    order = np.arange(len(every))
    if seed is not None:
        np.random.default_rng(seed).shuffle(order)
    for start in range(0, len(every), texts):
        yield batch(
            [every[i] for i in order[start : start + texts]], vocabulary, length
        )


def batch(
    few: Sequence[Window], vocabulary: Vocabulary, length: int
) -> Batch[NDArray[Any]]:
    """One batch, as long as its longest window and at most `length`."""
    width, k = few[0].sample.states.shape[1], few[0].sample.top_ids.shape[1]
    shape = len(few), min(length, max(window.end - window.begin for window in few))
    made: Batch[NDArray[Any]] = Batch(
        np.full(shape, vocabulary.rows, dtype=np.int64),
        np.zeros(shape, dtype=np.int64),
        np.zeros((*shape, width), dtype=np.float32),
        np.zeros((*shape, width), dtype=np.float32),
        np.zeros((*shape, k), dtype=np.int64),
        np.full((*shape, k), -np.inf, dtype=np.float32),
        np.zeros(shape, dtype=np.bool_),
    )
    for i, (sample, begin, first, end) in enumerate(few):
        n, start, stated = end - begin, sample.start, sample.stated
        made.tokens[i, :n] = vocabulary.rows_of(sample.tokens[begin:end])
        made.ids[i, :n] = sample.tokens[begin:end]
        # The state that chose token t is the one after token t - 1.
        seen = max(stated + 1, begin)
        if seen < end:
            chose = sample.states[seen - 1 - stated : end - 1 - stated]
            made.states[i, seen - begin : n] = chose
        here = slice(first - begin, n)
        made.next_states[i, here] = sample.states[first - stated : end - stated]
        rows = vocabulary.rows_of(sample.top_ids[first + 1 - start : end + 1 - start])
        logits = sample.top_logits[first + 1 - start : end + 1 - start]
        known = rows < vocabulary.rows
        made.top_rows[i, here] = np.where(known, rows, 0)
        made.top_logits[i, here] = np.where(known, logits, -np.inf)
        made.counts[i, here] = known.any(axis=1)
    return made
