"""Refuses JSON schemas whose automata would be too large.

llguidance compiles the restrictions of a text or a number into one automaton, and
computes the states as it goes; no limit of its own ends that. A number that is a
multiple of n has n states, and the states of restrictions that hold together multiply.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal

from edgecs.errors import ConfigError

# measured: the first mask of a multiple of 9,973 takes 46 ms, of 200,003 3 s.
MOST_STATES = 10_000  # of all `multipleOf` together
# measured: 16 patterns that hold together take 0.8 s, 20 take 27 s and 2 GB.
MOST_TOGETHER = 8  # patterns of a schema in which several may hold for one text
MOST_NAMES = 16  # patterns for the names of an object's members


def check_automata(schema: object) -> None:
    """Raises ConfigError for a schema that would take too much time or memory."""
    states, patterns, meet = 1, 0, False
    for part in _objects(schema):
        states = math.lcm(states, _states(part.get("multipleOf")))
        if states > MOST_STATES:
            raise ConfigError(
                "the JSON schema's multipleOf need too many states (more than "
                f"{MOST_STATES}): use smaller or rounder numbers"
            )
        names = part.get("patternProperties")
        if isinstance(names, Mapping) and len(names) > MOST_NAMES:
            raise ConfigError(
                f"the JSON schema has an object with {len(names)} patternProperties, "
                f"more than the {MOST_NAMES} that edgecs takes: use fewer"
            )
        patterns += isinstance(part.get("pattern"), str)
        patterns += isinstance(part.get("format"), str)
        meet |= isinstance(part.get("allOf"), list)
        meet |= isinstance(part.get("$ref"), str) and len(part) > 1
    if meet and patterns > MOST_TOGETHER:
        raise ConfigError(
            f"the JSON schema has {patterns} patterns and formats that may hold "
            f"together, because of allOf or $ref; edgecs takes {MOST_TOGETHER}: use "
            "fewer"
        )


def _objects(schema: object) -> Iterator[Mapping[str, object]]:
    """All JSON objects in a schema."""
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, Mapping):
            yield part
            left += part.values()
        elif isinstance(part, list):
            left += part


def _states(multiple: object) -> int:
    """Remainders that an automaton tells apart; 1 for what is not a number."""
    if isinstance(multiple, bool) or not isinstance(multiple, int | float):
        return 1
    if not math.isfinite(multiple) or abs(multiple) > MOST_STATES:
        return MOST_STATES + 1
    digits = abs(Decimal(repr(multiple)))
    scale = max(0, -int(digits.as_tuple().exponent))
    return max(1, min(int(digits.scaleb(scale)), MOST_STATES + 1))
