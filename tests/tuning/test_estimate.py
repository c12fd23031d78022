"""What curves promise."""

from __future__ import annotations

import pytest

from edgecs.tuning.estimate import best_draft, expected, needed
from tests.tuning.tuning_fakes import times


def test_what_a_drafter_needs_is_what_makes_a_round_pay():
    two = times(w1=1.0, w2=1.2)
    # One token of it: (1 + a) / (1.2 + 0.3) beats 1.02 from a = 0.53 on.
    assert needed(two, 0.3) == 0.54
    assert best_draft(two, 0.3, 0.54) == pytest.approx((1.54, 1.5))
    assert best_draft(two, 0.3, 0.5) == (1.0, 1.0)
    assert needed(two, 0.79) is None
    # A call of four has room for two drafted tokens, or for three.
    four = times(w1=1.0, w4=1.1)
    assert best_draft(four, 0.2, 0.5) == pytest.approx((1.75, 1.5))
    assert best_draft(four, 0.1, 0.9) == pytest.approx((3.439, 1.4))


def test_expected_speeds_follow_from_curves():
    dear, free = times(w1=1.0, w2=3.0), times(**{f"w{n}": 1.0 for n in range(1, 33)})
    assert expected(free, False) == expected(dear, True) == 1.0
    assert expected(free, True) > 1.2
    assert expected(free, False, [(0.1, 0.0)]) == 1.0
    # Eight tokens, all right, for eight steps.
    assert expected(free, False, [(0.1, 1.0)]) == pytest.approx(9 / 1.8)
    assert expected(free, True, [(0.1, 1.0), (0.5, 0.1)]) >= 9 / 1.8
