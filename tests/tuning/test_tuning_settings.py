"""Other ways to load a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgecs.core.draft import LanguageModel
from edgecs.engines.load_options import FlashAttention, KVType, LoadOptions
from edgecs.errors import OutOfMemory
from edgecs.tuning.settings import Pair, SettingTimes, settings_to_try, time_settings
from tests.tuning.tuning_fakes import Slowness, TimedModel


class TestSettings:
    slow: ClassVar = {1: 0.01, 4: 0.02, 16: 0.04}
    usual = LoadOptions(n_ctx=512)

    def measured(
        self, other: dict[int, float], slowness: Slowness = lambda now: 1.0
    ) -> SettingTimes:
        now = TimedModel(self.slow, slowness)

        @contextmanager
        def open_with(options: LoadOptions) -> Iterator[LanguageModel]:
            assert options.n_ctx == 512
            yield TimedModel(other, slowness, clock=now.clock)

        ways = [next(settings_to_try(self.usual, 2, 2))]
        (found,) = time_settings(now, ways, open_with, 3, clock=now.clock)
        return found

    def test_calls_take_turns_so_that_drift_decides_nothing(self):
        faster = {n: seconds / 2 for n, seconds in self.slow.items()}
        found = self.measured(faster, lambda now: 1 + 2 * now)
        assert list(found.seconds) == [64, 479]
        for pairs in found.seconds.values():
            assert list(pairs) == [1, 4, 16]
            for pair in pairs.values():
                assert pair.ratio == pytest.approx(0.5, rel=0.2)
        assert found.tells
        assert found.advice().startswith("--flash-attn off: a token takes 0.")
        assert "so may answers" in found.advice()

    @given(st.floats(0.5, 2), st.floats(0.5, 2))
    def test_what_is_no_faster_is_not_advised(self, start: float, deep: float):
        way = next(settings_to_try(self.usual, 2, 2))
        seconds = {64: {1: Pair(1, start)}, 1024: {1: Pair(1, deep)}}
        found = SettingTimes(way, seconds)
        assert found.tells == (min(start, deep) <= 0.95)
        if start > 1.06 and deep < 0.94:
            assert f"after 1024 tokens, but {start:.2f} after 64" in found.advice()

    @given(
        st.sampled_from(get_args(FlashAttention)),
        st.sampled_from(get_args(KVType)),
        st.sampled_from(get_args(KVType)),
        st.booleans(),
        st.integers(1, 16),
        st.integers(1, 32),
    )
    def test_all_ways_are_possible_and_change_one_thing(
        self, flash, type_k, type_v, repack: bool, threads: int, logical: int
    ):
        assume(flash != "off" or type_v in ("f32", "f16", "bf16"))
        usual = LoadOptions(
            flash_attention=flash, type_k=type_k, type_v=type_v, repack=repack
        )
        ways = list(settings_to_try(usual, threads, logical))
        assert len({way.flags for way in ways}) == len(ways)
        for way in ways:
            assert way.options != usual
            assert way.options.threads >= 0
            assert way.options.threads != threads or "-t" not in way.flags
        # What was asked to stay as it is cannot be laid out anew: it may crash.
        assert not any(way.options.repack and not repack for way in ways)

    def test_what_cannot_be_loaded_is_left_out_and_said(self):
        said: list[str] = []

        def open_with(options: LoadOptions):
            raise OutOfMemory("no room")

        ways = list(settings_to_try(self.usual, 2, 4))
        now = TimedModel(self.slow)
        assert time_settings(now, ways, open_with, 1, said.append) == []
        assert said[1::2] == [f"{w.flags} was not measured: no room" for w in ways]
        assert now.widths == []
