"""Other files of the same model, and what they promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgecs.calibrate.profile import Profile, Profiles, fingerprint
from edgecs.costs.cost_model import CostModel
from edgecs.tuning.quantisations import expected_quantisations, quantisation
from tests.keys import KEY


@pytest.mark.parametrize(
    ("stem", "parts"),
    [
        ("SmolLM2-135M-Instruct.Q4_1", ("smollm2-135m-instruct", "Q4_1")),
        (
            "qwen2.5-coder-1.5b-instruct-q4_k_m",
            ("qwen2.5-coder-1.5b-instruct", "Q4_K_M"),
        ),
        ("Llama-3-8B-UD-IQ2_XXS", ("llama-3-8b", "IQ2_XXS")),
        ("m-bf16-00001-of-00003", ("m", "BF16")),
        ("m-bf16-00002-of-00003", ("m-bf16-00002-of-00003", "")),
        ("qwen-q4you", ("qwen", "Q4YOU")),
        ("quiet", ("quiet", "")),
    ],
)
def test_names_of_files_tell_model_and_quantisation(stem, parts):
    assert quantisation(stem) == parts


def test_other_quantisations_promise_what_their_profiles_say(
    tmp_path: Path, profiles: Profiles
):
    names = ["model-Q4_K_M", "model-Q4_0", "model-Q8_0", "model-Q2_K", "other-Q4_0"]
    paths = [tmp_path / f"{name}.gguf" for name in names]
    for path in paths:
        path.write_text(path.name)
    costs = CostModel()
    costs.measured(0, {1: 0.01, 4: 0.011})
    for path, change in zip(paths[1:4], ({}, {"device": "M4"}, {}), strict=True):
        key = replace(KEY, model=path.stem, fingerprint=fingerprint(path), **change)
        tuned = None if "Q2" in path.name else "2025-01-31"
        assert profiles.save(Profile(key, costs.state(), tuned=tuned))
    key = replace(KEY, fingerprint=fingerprint(paths[0]))
    found = expected_quantisations(
        paths[0], [*paths, tmp_path / "gone-Q4_0.gguf"], key, profiles
    )
    assert [other.name for other in found] == ["Q2_K", "Q4_0", "Q8_0"]
    untuned, known, elsewhere = (other.expected_rates for other in found)
    assert untuned is elsewhere is None
    assert known is not None
    assert known[0] == pytest.approx(100)
    assert known[1] > 110
