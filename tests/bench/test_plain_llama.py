"""llama.cpp's own loop, the yardstick of the bench, says what edgecs says."""

from __future__ import annotations

import numpy as np
import pytest

from edgecs_bench.run.plain_llama import PlainLlama

F16 = 1  # ggml_type


def test_llama_alone_says_what_edgecs_says(tiny):
    with (
        PlainLlama(tiny.model.handle, 1024, 1, F16, F16) as plain,
        tiny.session([], 0) as session,
    ):
        for prompt in ([5, 6, 7], [3] * 100, [9]):
            said = [token.id for token in session.generate(prompt, max_tokens=60)]
            found, ttft, seconds = plain.answer(prompt, 60)
            assert found == said
            assert min(ttft, seconds) > 0
        # A prompt of several chunks; a single token.
        long = np.random.default_rng(0).integers(0, 256, 700).tolist()
        many, *_ = plain.answer(long, 20)
        assert plain.answer(long, 1)[0] == many[:1]
    plain.close()


def test_llama_alone_stops_at_the_end_token(tiny):
    ends = tiny.model.vocabulary.ends
    with PlainLlama(tiny.model.handle, 2048, 1, F16, F16) as plain:
        for first in range(40):
            said, *_ = plain.answer([first], 300)
            assert not ends & {*said[:-1]}
            if said[-1] in ends:
                assert len(said) < 300
                break
        else:
            pytest.fail("no answer ended")
