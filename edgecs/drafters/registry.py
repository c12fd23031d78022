"""The default model-free drafters of a planner."""

from __future__ import annotations

from edgecs.drafters.bigrams import Bigrams
from edgecs.drafters.maxgram import MaxGram
from edgecs.drafters.source import Source


def usual_sources(min_match: int = 1) -> list[Source]:
    """New default sources for one target, usually the best one first.

    min_match: length of the shortest match that Max-Gram uses.
    """
    return [MaxGram(min_match=min_match), Bigrams()]
