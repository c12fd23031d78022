"""The exactness tiers: what users ask for, and what a depth of the context has."""

from __future__ import annotations

from typing import Literal

Exact = Literal["auto", "strict", "numeric"]
"""The requested tier; auto: strict where that costs little."""

Tier = Literal["strict", "numeric"]
"""The tier of a range of the context."""
