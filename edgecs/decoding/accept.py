"""The names of the rules that verify drafted tokens; options need no more of them."""

from __future__ import annotations

from typing import Literal

Accept = Literal["shared", "rejection", "block"]
"""The shared noise, or ratios of probabilities, by tokens or by blocks."""
