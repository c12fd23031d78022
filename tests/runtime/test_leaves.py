"""Trees are switched on by the leaves of a recipe, and only where they are allowed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgecs.decoding.kmatrix import KMatrix
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.builder import build, find_files
from edgecs.runtime.folders import Folders
from edgecs.runtime.recipe import Recipe
from edgecs.runtime.target import Reports

OPTIONS = LoadOptions(n_ctx=256, n_batch=64, threads=1, n_gpu_layers=0, leaves=4)


@pytest.mark.parametrize(
    ("changes", "leaves", "tier"),
    [
        ({}, 4, "numeric"),
        ({"exact": "numeric"}, 4, "numeric"),
        ({"exact": "strict"}, 1, "strict"),
        ({"speculate": False}, 1, "auto"),
        ({"longest": 0}, 1, "auto"),
        ({"matrix": KMatrix(((4,),))}, 1, "auto"),
        ({"options": replace(OPTIONS, leaves=1)}, 1, "auto"),
    ],
)
def test_leaves_are_loaded_where_they_are_used(changes, leaves: int, tier: str):
    recipe = Recipe("any.gguf", **{"options": OPTIONS, **changes})
    assert recipe.target_options.leaves == leaves
    assert recipe.tier == tier
    assert recipe.drafter_options.leaves == leaves


@pytest.mark.parametrize("exact", ["auto", "strict"])
def test_a_strict_recipe_says_that_its_drafts_are_chains(
    tiny_gguf: Path, tmp_path: Path, exact
):
    warnings: list[str] = []
    recipe = Recipe(str(tiny_gguf), OPTIONS, drafts=(), exact=exact)
    folders = Folders(tmp_path, offline=True)
    files = find_files(recipe, folders)
    with build(recipe, files, folders, Reports(warnings.append)) as runtime:
        strict = exact == "strict"
        assert any("drafts are chains" in text for text in warnings) == strict
        assert runtime.loaded.target.max_leaves == (1 if strict else 4)
        names = [drafter.name for drafter in runtime.session.cascade.drafters]
        assert names == (
            ["mag", "bigram"] if strict else ["mag", "recycling", "bigram"]
        )
        said = [t.id for t in runtime.session.generate([5, 6, 7], max_tokens=12)]
    assert len(said) == 12
