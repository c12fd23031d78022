"""The sorted order of suffixes, against sorting them one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgecs.drafters.copies import LONGEST
from edgecs.memory.suffix_array import (
    WORD,
    backward,
    common,
    first_words,
    first_words_of,
    query_of,
    sorted_suffixes,
)

documents = st.lists(
    st.lists(st.integers(0, 3), max_size=90).map(lambda ids: np.array(ids, np.int32)),
    max_size=5,
)


@given(documents, st.sampled_from([0, 200_000, 2**31 - 10]))
def test_suffixes_are_sorted_by_the_words_that_are_compared(documents, above):
    words = backward([one + np.int32(above) for one in documents])
    raw = words.astype(WORD).tobytes()
    found = sorted_suffixes(words).tolist()
    keys = [raw[4 * at : 4 * (at + LONGEST)] for at in found]
    assert keys == sorted(keys)
    inner = [at for at in range(1, words.size) if words[at] and words[at - 1]]
    assert sorted(found) == inner


@given(documents, st.sampled_from([0, 60_000, 200_000, 2**31 - 10]), st.data())
def test_first_words_are_in_the_order_of_the_suffixes(documents, above, data):
    words = backward([one + np.int32(above) for one in documents])
    found = sorted_suffixes(words)
    bits = max(1, int(words.max(initial=0)).bit_length())
    keys = first_words(words, found, bits).tolist()
    assert keys == sorted(keys)
    tokens = st.integers(above, above + 5) | st.integers(0, 2**31 - 2)
    query = query_of(data.draw(st.lists(tokens, max_size=8)))
    raw = words.astype(WORD).tobytes()
    for at, key in zip(found.tolist(), keys, strict=True):
        suffix, number = raw[4 * at : 4 * at + len(query)], first_words_of(query, bits)
        assert (key <= number) if suffix < query else (key >= number)


def test_a_long_run_of_one_token_is_sorted():
    words = backward([np.zeros(50_000, np.int32)])
    assert sorted_suffixes(words).size == 49_999


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2)))
def test_common_counts_equal_words_from_the_end(one, other):
    pairs = zip(reversed(one[-LONGEST:]), reversed(other[-LONGEST:]), strict=False)
    equal = [a == b for a, b in pairs]
    expected = [*equal, False].index(False)
    assert common(query_of(one), query_of(other)) == expected
