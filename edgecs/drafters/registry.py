"""The drafters without a model that are planned when nothing else is said."""

from __future__ import annotations

from edgecs.drafters.bigrams import Bigrams
from edgecs.drafters.maxgram import MaxGram
from edgecs.drafters.source import Source


def usual_sources(min_match: int = 1) -> list[Source]:
    """One of each, the usually best one first; they serve one target.

    min_match: tokens that occurred before, after which Max-Gram drafts.
    """
    return [MaxGram(min_match=min_match), Bigrams()]
