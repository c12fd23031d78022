"""Phrases of a target: its answers to other questions, whole or their frequent runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from edgecs.memory.segment import NotASegment, opened
from edgecs_bench.simulation.traces import Recording, for_tuning

# Hierarchy Drafting keeps 5-grams of the target's own answers.
LEAST = 5  # tokens of a phrase
TIMES = 2  # chosen: answers in which it occurs; one answer repeats itself


def phrases_of(target: str, recordings: Iterable[Recording]) -> list[list[int]]:
    """The tuning halves of the answers of a target."""
    said = {
        tuple(trace.output)
        for recording in recordings
        if recording.target.casefold() == target.casefold()
        for trace in recording.traces
        if for_tuning(trace)
    }
    return [*map(list, sorted(said))]


def read_phrases(path: Path) -> list[list[int]]:
    """The answers in a file of `edgecs memory build`. Raises click.UsageError."""
    try:
        return [tokens.tolist() for _, tokens in opened(path).documents()]
    except (OSError, NotASegment) as error:
        raise click.UsageError(
            f"{path} cannot be read as phrases ({error}): give a file that `edgecs "
            "memory build` has written"
        ) from error


def frequent(
    texts: Iterable[Sequence[int]], least: int = LEAST, times: int = TIMES
) -> list[list[int]]:
    """The longest runs of tokens whose `least`-grams all occur in `times` texts.

    The most frequent ones come first: those whose rarest gram is in most texts.

    >>> frequent([[1, 2, 3, 4], [9, 1, 2, 3, 5], [7]], least=2)
    [[1, 2, 3]]
    """
    texts = [list(text) for text in texts]
    count = Counter(gram for text in texts for gram in {*_grams(text, least)})
    phrases = dict[tuple[int, ...], int]()
    for text in texts:
        for start, end, rarest in _runs(text, count, least, times):
            phrases[tuple(text[start:end])] = rarest
    # The sort is stable, so equally frequent ones keep their order.
    return [list(phrase) for phrase in sorted(phrases, key=lambda p: -phrases[p])]


def _runs(
    text: Sequence[int], count: Counter[tuple[int, ...]], least: int, times: int
) -> Iterator[tuple[int, int, int]]:
    """Where the runs of frequent grams begin and end, and how often the rarest is."""
    start, rarest = None, 0
    for at, gram in enumerate([*_grams(text, least), None]):
        often = count[gram] if gram is not None else 0
        if often >= times:
            start, rarest = (
                (at, often) if start is None else (start, min(rarest, often))
            )
        elif start is not None:
            yield start, at + least - 1, rarest
            start = None


def _grams(text: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(text[i : i + size]) for i in range(len(text) - size + 1)]
