"""TextStream: whole characters, no stop strings, nothing lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgecs.text.detokenizer import TextStream

text = st.text(st.sampled_from("abé漢🙂\u0301"), max_size=30)
stops = st.lists(st.text(st.sampled_from("abé漢"), min_size=1, max_size=3), max_size=3)


@given(text=text, stop=stops, cuts=st.lists(st.integers(1, 5), min_size=1))
def test_any_cut_of_the_bytes_gives_the_text_up_to_the_first_stop(text, stop, cuts):
    data, stream, out = text.encode(), TextStream(stop), ""
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    expected = text[: min(ends)[1]] if ends else text
    while data and not stream.stopped:
        size = cuts[len(data) % len(cuts)]
        out += stream.push(data[:size])
        data = data[size:]
        assert expected.startswith(out)  # nothing is ever taken back
    assert out + stream.flush() == expected
    assert stream.stopped == bool(ends)


@given(st.binary(max_size=40))
def test_any_bytes_give_text(data: bytes):
    stream = TextStream()
    out = "".join(stream.push(data[i : i + 1]) for i in range(len(data)))
    assert out + stream.flush() == data.decode("utf-8", "replace")


def test_text_goes_out_as_soon_as_no_stop_can_begin_in_it():
    stream = TextStream(["abc"])
    assert stream.push(b"xab") == "x"
    assert stream.push(b"ab") == "ab"
    assert stream.push(b"d") == "abd"


def test_nothing_comes_after_a_stop():
    stream = TextStream(["b"])
    assert stream.push(b"abc") == "a"
    assert stream.push(b"d") == stream.flush() == ""


def test_an_incomplete_character_at_the_end_is_marked():
    stream = TextStream()
    assert stream.push("é".encode()[:1]) == ""
    assert stream.flush() == "\ufffd"
