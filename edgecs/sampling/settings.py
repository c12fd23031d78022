"""The settings of the sampler chain: llama.cpp's samplers under llama.cpp's names."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import TypedDict

from edgecs.errors import ConfigError


class Settings(TypedDict, total=False):
    """Some of the settings of a `Sampling`, as keywords."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    repeat_penalty: float
    repeat_last_n: int
    frequency_penalty: float
    presence_penalty: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_last_n: int
    dry_breakers: tuple[str, ...]
    logit_bias: tuple[tuple[int, float], ...]
    seed: int


@dataclass(frozen=True)
class Sampling:
    """The sampler chain. Names, meanings and order are llama.cpp's; all are off.

    Order: logit_bias, grammar, penalties, DRY, top_n_sigma, top_k, typical_p, top_p,
    min_p, XTC, temperature. temperature 0 is greedy. repeat_last_n, dry_last_n:
    tokens considered, -1: all. Raises ConfigError for invalid values.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_last_n: int = -1
    dry_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(field.default) in (int, float) and (
                isinstance(value, bool) or not isinstance(value, Real)
            ):
                raise ConfigError(f"{field.name} must be a number, got {value!r}")
        for name, ok, what in (
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 <= self.top_p <= 1, "between 0 and 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("typical_p", 0 < self.typical_p <= 1, "above 0 and at most 1"),
            ("xtc_probability", 0 <= self.xtc_probability <= 1, "between 0 and 1"),
            ("xtc_threshold", 0 <= self.xtc_threshold <= 1, "between 0 and 1"),
            ("repeat_penalty", self.repeat_penalty > 0, "above 0"),
            ("repeat_last_n", self.repeat_last_n >= -1, "-1 (all), 0 (off) or more"),
            ("dry_multiplier", self.dry_multiplier >= 0, "0 (off) or more"),
            ("dry_base", self.dry_base >= 0, "0 or more"),
            ("dry_allowed_length", self.dry_allowed_length >= 1, "1 or more"),
            ("dry_last_n", self.dry_last_n >= -1, "-1 (all), 0 (off) or more"),
            ("seed", 0 <= self.seed < 1 << 64, "between 0 and 2^64 - 1"),
        ):
            value = getattr(self, name)
            if not ok or not math.isfinite(value):
                raise ConfigError(f"{name} must be {what}, got {value:g}")
        for name in ("top_n_sigma", "frequency_penalty", "presence_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name} must be a number, got {getattr(self, name)}")

    @property
    def penalises(self) -> bool:
        """Whether repetition penalties do anything."""
        off = (self.repeat_penalty, self.frequency_penalty, self.presence_penalty)
        return off != (1.0, 0.0, 0.0) and self.repeat_last_n != 0

    @property
    def dries(self) -> bool:
        """Whether DRY does anything."""
        on = self.dry_multiplier > 0 and self.dry_base >= 1
        return on and self.dry_last_n != 0

    @property
    def takes_largest(self) -> bool:
        """Whether the choice is the largest logit after bias, grammar and penalties.

        At temperature 0 only typical_p and XTC can drop the most probable token.
        """
        return not self.temperature and self.typical_p == 1 and not self.xtc_probability

    @property
    def is_greedy(self) -> bool:
        """Whether the choice is the largest logit of the unmodified row."""
        edits = bool(self.logit_bias) or self.penalises or self.dries
        return self.takes_largest and not edits
