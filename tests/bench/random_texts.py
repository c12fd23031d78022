"""Answers of few words, drawn at random."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from edgecs_bench.simulation.traces import Trace


@st.composite
def texts(draw: st.DrawFn, most: int) -> Trace:
    """Of few words, so that some of it was there before."""
    vocab = draw(st.sampled_from([1, 2, 4, 1000]))
    random = np.random.default_rng(draw(st.integers(0, 9999)))
    n = draw(st.integers(2, most))
    output = random.integers(0, vocab, n).tolist()
    prompt = random.integers(0, vocab, draw(st.integers(1, 9))).tolist()
    return Trace("", "", prompt, output, [0.0] * n)
