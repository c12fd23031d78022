"""What a tuning says at its end."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.engines.load_options import LoadOptions
from edgecs.testing.fakes import TableModel
from edgecs.tuning.comparison import MAG, Chain, Trial
from edgecs.tuning.quantisations import Quantisation
from edgecs.tuning.report import Report
from edgecs.tuning.settings import Pair, SettingTimes, settings_to_try
from edgecs.tuning.tuner import Tuned
from tests.keys import KEY
from tests.tuning.tuning_fakes import tuned_table


@cache
def tuned_pair() -> tuple[SpeculationProfile, Tuned]:
    known = SpeculationProfile(TableModel(50, n_ctx=300))
    return known, tuned_table(known, "twin", "other")


rates = st.none() | st.tuples(st.floats(1, 100), st.floats(1, 100))


@given(
    st.lists(rates, max_size=4),
    st.lists(st.floats(0.5, 1.5), max_size=4),
    st.lists(st.floats(0.5, 3), min_size=2, max_size=2) | st.just([]),
    st.booleans(),
    st.booleans(),
)
def test_a_verdict_is_five_lines_and_says_what_to_do(
    promises, ratios, speeds, chosen_drafts: bool, kept: bool
):
    known, tuned = tuned_pair()
    ways = itertools.cycle(settings_to_try(LoadOptions(), 2, 2))
    others = [SettingTimes(next(ways), {64: {1: Pair(1, ratio)}}) for ratio in ratios]
    files = [Quantisation(f"Q{i}", Path("x"), p) for i, p in enumerate(promises)]
    chain = Chain(("twin",), True) if chosen_drafts else MAG
    trial = Trial(chain, dict(zip(("code", "question"), speeds, strict=False)))
    report = Report(
        "my model.gguf",
        ["my twin.gguf", "other.gguf"],
        KEY,
        known,
        "1.0 MiB for 4096 tokens",
        replace(tuned, chosen=trial),
        files,
        others,
        kept,
    )
    lines = list(report.verdict())
    assert 2 <= len(lines) <= 5
    assert lines[0].startswith(f"Chosen: target <- {chain.name}")
    assert ("x as fast as plain decoding" in lines[0]) == bool(speeds)
    assert ("no other is faster" in lines[0]) == bool(speeds and not trial_pays(trial))
    assert "bits of plain decoding" in lines[1]
    text = "\n".join(lines)
    for other in others:
        assert not other.tells or other.setting.flags in text
    if kept and chosen_drafts and not tuned.unsteady:
        assert lines[-1] == (
            "Next: edgecs generate -m 'my model.gguf' --draft 'my twin.gguf'"
        )
    assert all(len(line) < 400 for line in lines)


def trial_pays(trial: Trial) -> bool:
    return trial.harmless and trial.mean >= 1
