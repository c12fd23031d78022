"""Strict answers of models with sliding windows: all their cells are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.decoding.tiers import Exact
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.folders import Folders
from edgecs.runtime.loader import Loaded
from edgecs.runtime.recipe import Recipe
from edgecs.runtime.target import Reports, open_target
from tests.families import gemma3

OPTIONS = LoadOptions(n_ctx=1024, n_batch=64, threads=1, n_gpu_layers=0)


@contextmanager
def opened(
    path: Path, exact: Exact, told: list[str]
) -> Iterator[tuple[Loaded, SpeculationProfile]]:
    recipe = Recipe(str(path), options=OPTIONS, exact=exact)
    reports = Reports(warning=told.append)
    folders = Folders(path.parent / "cache")
    with open_target(recipe, path, folders, reports) as (loaded, speculation):
        assert speculation is not None
        yield loaded, speculation


def test_the_tier_is_numeric_beyond_the_cells_of_a_window(tmp_path: Path):
    path, told = gemma3(tmp_path / "gemma3.gguf"), list[str]()
    with opened(path, "auto", told) as (loaded, speculation):
        assert loaded.target.steady == 256
        assert speculation.limits.tier(0) == "strict"
        assert speculation.limits.tier(300) == "numeric"
    assert not told


def test_strict_keeps_all_cells_and_says_so(tmp_path: Path):
    path, told = gemma3(tmp_path / "gemma3.gguf"), list[str]()
    with opened(path, "strict", told) as (loaded, speculation):
        assert loaded.options.swa_full
        assert loaded.target.steady is None
        assert speculation.limits.fits(24, 8) == 8
    assert "no width is exact beyond 256 tokens" in told[0]
    assert "(--swa-full)" in told[0]


def test_without_the_memory_the_window_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, told = gemma3(tmp_path / "gemma3.gguf"), list[str]()
    fits = LlamaModel.kv_fits

    def few(self: LlamaModel, n_ctx: int, options: LoadOptions) -> bool:
        return not options.swa_full and fits(self, n_ctx, options)

    monkeypatch.setattr(LlamaModel, "kv_fits", few)
    with opened(path, "strict", told) as (loaded, speculation):
        assert not loaded.options.swa_full
        assert speculation.limits.fits(24, 8) == 8
        assert speculation.limits.fits(300, 8) == 1
    assert "do not fit into memory: give a smaller context" in told[0]
