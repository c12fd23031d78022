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
from edgecs.sampling.cascade_rules import CascadeRule

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


SMALL = ("small.gguf",)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"exact": "strict"}, "rows have to be those of plain decoding"),
        ({"matrix": KMatrix(((4,),))}, "a K matrix counts the tokens of chains"),
        (
            {"drafts": SMALL, "cascade": CascadeRule("v3", 0.5)},
            "--cascade-rule verifies chains",
        ),
        ({"accept": "block"}, "--accept block verifies chains"),
    ],
)
def test_a_recipe_says_why_it_drafts_chains(changes, why: str):
    recipe = Recipe("any.gguf", **{"options": OPTIONS, **changes})
    assert why in recipe.takes_chains
    assert bool(why) == bool(recipe.takes_chains)
    assert recipe.target_options.leaves == (1 if why else 4)
    assert recipe.drafter_options.leaves == recipe.target_options.leaves


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
            ["mag", "recent", "bigram"]
            if strict
            else ["mag", "recent", "recycling", "bigram"]
        )
        said = [t.id for t in runtime.session.generate([5, 6, 7], max_tokens=12)]
    assert len(said) == 12


@pytest.mark.parametrize("leaves", [1, 3])
def test_a_gguf_drafter_takes_as_many_leaves_as_the_target(
    tiny_gguf: Path, tmp_path: Path, leaves: int
):
    options = replace(OPTIONS, leaves=leaves)
    recipe = Recipe(str(tiny_gguf), options, drafts=(str(tiny_gguf),), exact="numeric")
    folders = Folders(tmp_path, offline=True)
    files = find_files(recipe, folders)
    with build(recipe, files, folders) as runtime:
        (drafter,) = runtime.drafters
        assert drafter.model.max_leaves == leaves
        assert runtime.loaded.target.max_leaves == leaves
        said = [t.id for t in runtime.session.generate([5, 6, 7], max_tokens=30)]
        assert not runtime.session.stats.faults
        runtime.session.close()
        with runtime.another_session(replace(recipe, speculate=False)) as plain:
            assert said == [t.id for t in plain.generate([5, 6, 7], max_tokens=30)]
