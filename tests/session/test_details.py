"""How each token came about: its round, its probability, and what it displaced."""

from __future__ import annotations

import numpy as np
import pytest

from edgecs.core.draft import Draft, Rows, Verdict
from edgecs.decoding.cascade import Round
from edgecs.session.details import Detail, Rejected, details_of

ROWS = np.log(
    np.array(
        [[0.1, 0.7, 0.2], [0.5, 0.25, 0.25], [0.2, 0.2, 0.6]],
        dtype=np.float32,
    )
)


def done(draft: Draft, path: tuple[int, ...], token: int) -> Round:
    rows = Rows(ROWS[: 1 + len(draft)], fed=1 + len(draft))
    return Round(draft, rows, Verdict(path, token), draft.sources, "target")


def near(details: list[Detail], expected: list[Detail]) -> bool:
    plain = [one._replace(p=0.0, rejected=None) for one in details]
    assert plain == [one._replace(p=0.0, rejected=None) for one in expected]
    assert [one.p for one in details] == pytest.approx([one.p for one in expected])
    return True


def test_a_rejected_token_is_told_with_the_one_that_displaced_it():
    details = details_of(done(Draft.chain([1, 2], ["a", "b"]), (0,), 0), 4)
    assert near(details, [Detail(0.7, 4, 3), Detail(0.5, 4, 3)])
    first, last = details
    assert first.rejected is None
    assert last.rejected is not None
    assert last.rejected == Rejected(2, "b", pytest.approx(0.25))


def test_without_a_rejection_none_is_told():
    nothing = details_of(done(Draft.chain((), ""), (), 1), 1)
    assert near(nothing, [Detail(0.7, 1, 1)])
    accepted = details_of(done(Draft.chain([1], "a"), (0,), 0), 2)
    assert near(accepted, [Detail(0.7, 2, 2), Detail(0.5, 2, 2)])
    assert [one.rejected for one in accepted] == [None, None]


def test_an_end_token_that_was_drafted_is_not_a_rejection():
    details = details_of(done(Draft.chain([1], "a"), (), 1), 1)
    assert details[0].rejected is None
