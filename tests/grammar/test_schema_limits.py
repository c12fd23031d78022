"""Schemas whose automata would be too large are refused, and all others are not."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.errors import ConfigError
from edgecs.grammar.mask import Grammar
from edgecs.grammar.schema_limits import (
    MOST_NAMES,
    MOST_STATES,
    MOST_TOGETHER,
    check_automata,
)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "integer", "multipleOf": 99999989}, "multipleOf"),
        ({"type": "number", "multipleOf": 0.99999989}, "multipleOf"),
        ({"type": "number", "multipleOf": 1e300}, "multipleOf"),
        ({"items": {"anyOf": [{"multipleOf": 10007}]}}, "multipleOf"),
        (
            {"allOf": [{"multipleOf": n} for n in (97, 101, 103)], "type": "integer"},
            "multipleOf",
        ),
        (
            {"allOf": [{"pattern": f".*{c}.*"} for c in "abcdefghijklmnopqrst"]},
            "20 patterns",
        ),
        (
            {"patternProperties": {f"^{'x' * n}$": {} for n in range(1, 260)}},
            "259 patternProperties",
        ),
    ],
)
def test_what_would_hang_or_fill_the_memory_is_refused(schema: Any, why: str):
    with pytest.raises(ConfigError, match=why):
        Grammar.json_schema(schema)


def test_a_chain_of_references_holds_together_too():
    names = "abcdefghijkl"
    parts = {
        c: {"pattern": f".*{c}.*", "$ref": f"#/$defs/{d}"} for c, d in pairwise(names)
    }
    schema = {"$defs": {**parts, names[-1]: {"type": "string"}}, "$ref": "#/$defs/a"}
    with pytest.raises(ConfigError, match="11 patterns"):
        check_automata(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "multipleOf": 0.01},
        {"type": "integer", "multipleOf": MOST_STATES},
        {"properties": {"multipleOf": {"type": "integer"}, "pattern": {}}},
        {"properties": {f"p{n}": {"pattern": f"^a{n}$"} for n in range(40)}},
        {"patternProperties": {f"^x{n}$": {} for n in range(MOST_NAMES)}},
    ],
)
def test_usual_schemas_are_taken(schema: Any):
    check_automata(schema)
    Grammar.json_schema({"type": ["object", "number"], **schema})


@given(st.lists(st.decimals("1e-6", "1e6", places=4), max_size=4))
def test_states_are_those_of_all_numbers(multiples: list[Decimal]):
    numbers = [float(one) for one in multiples if one > 0]
    schema = {"allOf": [{"multipleOf": one} for one in numbers]}
    states = 1
    for one in numbers:
        digits = Decimal(repr(one))
        scaled = digits.scaleb(max(0, -int(digits.as_tuple().exponent)))
        states = math.lcm(states, int(scaled))
    if states > MOST_STATES:
        with pytest.raises(ConfigError, match="too many states"):
            check_automata(schema)
    else:
        check_automata(schema)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["multipleOf", "pattern", "allOf", "$ref", "x"]),
            inner,
            max_size=4,
        )
    ),
)


@given(json_values)
def test_any_json_is_checked_without_an_error_of_its_own(schema: Any):
    try:
        check_automata(schema)
    except ConfigError:
        assert any(key in json.dumps(schema) for key in ("multipleOf", "pattern"))


def test_the_limit_is_for_patterns_that_may_meet():
    patterns = [{"pattern": f"^{n}$"} for n in range(MOST_TOGETHER + 1)]
    check_automata({"anyOf": patterns})
    with pytest.raises(ConfigError, match="may hold together"):
        check_automata({"allOf": patterns})
