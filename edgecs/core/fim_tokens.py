"""The control tokens of models that fill in the middle of a text (FIM)."""

from __future__ import annotations

from typing import NamedTuple


class FimTokens(NamedTuple):
    """Ids of control tokens; None: the model has no such token."""

    prefix: int
    suffix: int
    middle: int
    repository: int | None = None
    separator: int | None = None  # between files
