"""Whether drafters go on while the target computes; options need no more of it."""

from __future__ import annotations

from typing import Literal

Overlap = Literal["auto", "on", "off"]
"""auto: where a tuning found that it pays."""
