"""A grammar's mask for drafters, which cannot always keep to it."""

from __future__ import annotations

import numpy as np

from edgecs.core.context import Tokens
from edgecs.core.draft import Row
from edgecs.errors import ConfigError
from edgecs.grammar.lazy import LazyMask
from edgecs.grammar.mask import GrammarMask


class DraftMask:
    """A grammar's mask for drafters: not applied where they cannot match it.

    After a path that the grammar refuses, or if a trimmed vocabulary has no token that
    may follow, their drafts are rejected, which is not an error.
    """

    def __init__(self, mask: GrammarMask | LazyMask) -> None:
        self._mask = mask

    def allows(self, answer: Tokens, token: int) -> bool:
        """See `GrammarMask.allows`."""
        try:
            return self._mask.allows(answer, token)
        except ConfigError:
            return True

    def mask(self, row: Row, answer: Tokens) -> Row:
        """See `GrammarMask.mask`."""
        try:
            masked = self._mask.mask(row, answer)
        except ConfigError:
            return row
        return masked if masked.max() > -np.inf else row
