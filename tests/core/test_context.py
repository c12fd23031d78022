"""Context: what is committed stays, what is guessed is a view."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.core.context import Context

ids = st.lists(st.integers(0, 2**31 - 1), max_size=400)


@given(start=ids, parts=st.lists(st.tuples(ids, ids), max_size=5))
def test_behaves_like_a_list(
    start: list[int], parts: list[tuple[list[int], list[int]]]
):
    context, expected = Context(start), list(start)
    for appended, tail in parts:
        context.append(appended)
        expected += appended
        view = context.with_tail(tail).with_tail([1])
        assert view.tokens.tolist() == [*expected, *tail, 1]
        assert view.committed == len(expected) == len(context)
        assert view.root is context
    assert context.tokens.tolist() == expected


def test_tokens_cannot_be_written_through_the_view():
    with pytest.raises(ValueError, match="read-only"):
        Context([1]).tokens[0] = 2


def test_a_view_does_not_grow():
    with pytest.raises(ValueError, match="only the root"):
        Context([1]).with_tail([2]).append([3])


def test_the_source_is_copied():
    source = Context([1, 2]).tokens.copy()
    context = Context(source)
    source[0] = 9
    assert context.tokens.tolist() == [1, 2]
