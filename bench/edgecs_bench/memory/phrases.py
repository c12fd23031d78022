"""Frequent phrases of a target, from its recorded answers to other questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from edgecs_bench.simulation.traces import Recording, for_tuning

# Hierarchy Drafting keeps 5-grams of the target's own answers.
LEAST = 5  # tokens of a phrase
TIMES = 2  # chosen: answers in which it occurs; one answer repeats itself


def frequent(texts: Iterable[Sequence[int]], least: int = LEAST) -> list[list[int]]:
    """The longest runs of tokens whose `least`-grams all occur in TIMES texts or more.

    >>> frequent([[1, 2, 3, 4], [9, 1, 2, 3, 5], [7]], least=2)
    [[1, 2, 3]]
    """
    texts = [list(text) for text in texts]
    count = Counter(gram for text in texts for gram in {*_grams(text, least)})
    phrases = dict[tuple[int, ...], None]()
    for text in texts:
        start = None
        for at, gram in enumerate([*_grams(text, least), None]):
            if gram is not None and count[gram] >= TIMES:
                start = at if start is None else start
            elif start is not None:
                phrases[tuple(text[start : at + least - 1])] = None
                start = None
    return [list(phrase) for phrase in phrases]


def _grams(text: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(text[i : i + size]) for i in range(len(text) - size + 1)]


def phrases_of(target: str, recordings: Iterable[Recording]) -> list[list[int]]:
    """Those in the tuning halves of the answers of a target."""
    said = {
        tuple(trace.output)
        for recording in recordings
        if recording.target.casefold() == target.casefold()
        for trace in recording.traces
        if for_tuning(trace)
    }
    return frequent(sorted(said))
