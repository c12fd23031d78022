"""Durations of Ollama's `keep_alive`: how long a model stays after its last answer."""

from __future__ import annotations

import math
import re

from edgecs.core.reading import shown
from edgecs.errors import ConfigError

USUAL = 300.0  # seconds, as for Ollama
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)(ms|s|m|h)")
_WHOLE = re.compile(rf"-?(?:{_PART.pattern})+")
_NUMBER = re.compile(r"-?\d{1,12}(?:\.\d{1,12})?")
_LONGEST_TEXT = 64
_LONGEST = 365 * 86_400.0  # seconds; longer means for ever


def seconds_of(value: object) -> float | None:
    """Seconds of a duration such as "5m" or "1h30m", or a number of seconds.

    0: unload at once. None: for ever, which is any negative duration. Raises
    ConfigError.

    >>> seconds_of("5m"), seconds_of("1h30m"), seconds_of(0), seconds_of(-1)
    (300.0, 5400.0, 0.0, None)
    """
    found = _number(value)
    if found is None or not math.isfinite(found):
        raise ConfigError(
            f"{shown(value)} is not a duration: give seconds, or a text such as 30s, "
            "5m or 1h30m; 0 unloads at once, a negative one keeps the model"
        )
    return None if found < 0 or found > _LONGEST else found


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if not isinstance(value, str):
        return float(value) if abs(value) < 1e18 else math.inf
    text = value.strip().lower() if len(value) <= _LONGEST_TEXT else ""
    if _NUMBER.fullmatch(text):
        return float(text)
    if not _WHOLE.fullmatch(text):
        return None
    total = sum(float(n) * _UNITS[unit] for n, unit in _PART.findall(text))
    return -total if text.startswith("-") else total


def in_words(seconds: float) -> str:
    """A duration for people.

    >>> in_words(42.4), in_words(300), in_words(5430)
    ('42 s', '5 min', '1 h 31 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = math.ceil(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
