"""The default model-free drafters of a planner."""

from __future__ import annotations

from collections.abc import Sequence

from edgecs.drafters.bigrams import Bigrams
from edgecs.drafters.maxgram import MaxGram
from edgecs.drafters.occurrences import Occurrences
from edgecs.drafters.recycling import Recycling
from edgecs.drafters.source import Branches, Source


def usual_sources(min_match: int = 1, *, trees: bool = False) -> list[Source]:
    """New default sources for one target, usually the best one first.

    min_match: length of the shortest match that Max-Gram uses. trees: for drafts that
    are trees: Token Recycling too, which reads every row of the target.
    """
    table: list[Source] = [Recycling()] if trees else []
    return [MaxGram(min_match=min_match), *table, Bigrams()]


def branches_of(sources: Sequence[Source]) -> list[Branches]:
    """What some sources propose besides their chains, usually the best one first."""
    found: list[Branches] = []
    for source in sources:
        if isinstance(source, MaxGram):
            found.append(Occurrences(source))
        elif isinstance(source, Recycling):
            found.append(source)
    return found
