"""The default model-free drafters of a planner."""

from __future__ import annotations

from collections.abc import Sequence

from edgecs.drafters.bigrams import Bigrams
from edgecs.drafters.corpus import Corpus
from edgecs.drafters.maxgram import MaxGram
from edgecs.drafters.occurrences import Occurrences
from edgecs.drafters.phrased import Phrased
from edgecs.drafters.recalled import Recalled
from edgecs.drafters.recalled_branches import RecalledBranches
from edgecs.drafters.recent_texts import RecentTexts
from edgecs.drafters.recycling import Recycling
from edgecs.drafters.recycling_table import RecyclingTable
from edgecs.drafters.remembered import Remembered
from edgecs.drafters.source import Branches, Source

RECENT, USER, PHRASES = "recent", "user", "phrases"
"""Names of the stores: texts of this process, those that are kept, the target's own."""
NAMES = ("mag", RECENT, USER, PHRASES, "recycling", "bigram")
"""The names of all model-free drafters, which no other drafter may have."""


def usual_sources(
    min_match: int = 1,
    *,
    trees: bool = False,
    recycling: RecyclingTable | None = None,
    recent: RecentTexts | None = None,
    memory: Corpus | None = None,
    phrases: Corpus | None = None,
    vocab_size: int | None = None,
) -> list[Source]:
    """New default sources for one target, usually the best one first.

    min_match: length of the shortest match that Max-Gram uses. trees: for drafts that
    are trees: Token Recycling too, which reads every row of the target. recycling: its
    table, None: an empty one. recent: texts of this process, which this conversation is
    added to when it is over. memory: other texts. phrases: texts of the target, the
    last store that is asked. vocab_size: of the target, which ids of both have to
    be below.
    """
    sources: list[Source] = [MaxGram(min_match=min_match)]
    if recent is not None:
        sources.append(Remembered(recent, RECENT))
    if memory is not None:
        sources.append(Recalled(memory, USER, vocab_size=vocab_size))
    if phrases is not None:
        sources.append(Phrased(phrases, PHRASES, vocab_size=vocab_size))
    if trees:
        sources.append(Recycling(recycling))
    return [*sources, Bigrams()]


def branches_of(sources: Sequence[Source]) -> list[Branches]:
    """What some sources propose besides their chains, usually the best one first."""
    found: list[Branches] = []
    for source in sources:
        if isinstance(source, MaxGram):
            found.append(Occurrences(source))
        elif isinstance(source, Recalled):
            found.append(RecalledBranches(source))
        elif isinstance(source, Recycling):
            found.append(source)
    return found
