"""The stores of a recipe: shared by the sessions of a model, and left out if asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from edgecs.core.context import Context
from edgecs.drafters.corpus import Match
from edgecs.drafters.recent_texts import RecentTexts
from edgecs.drafters.registry import NAMES, usual_sources
from edgecs.drafters.remembered import Remembered
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.builder import Runtime, build, find_files
from edgecs.runtime.folders import Folders
from edgecs.runtime.recipe import Recipe

OPTIONS = LoadOptions(n_ctx=256, n_batch=64, threads=1, n_gpu_layers=0)


class Junk:
    """A corpus of ids that no model has, and of one that every model has."""

    asked = 0

    def match(self, end: Sequence[int], k: int) -> Match | None:
        self.asked += 1
        return Match(32, 16, 16, [1, 1 << 40, -7][:k])


@contextmanager
def built(recipe: Recipe, folder: Path) -> Iterator[Runtime]:
    folders = Folders(folder, offline=True)
    with build(recipe, find_files(recipe, folders), folders) as runtime:
        yield runtime


def test_all_names_are_reserved():
    sources = usual_sources(trees=True, recent=RecentTexts(), memory=Junk())
    assert [source.name for source in sources] == list(NAMES)


@pytest.mark.parametrize("recent", [True, False])
def test_a_store_of_the_recipe_changes_no_answer(
    tiny_gguf: Path, tmp_path: Path, recent: bool
):
    prompt, junk = [1, 2, 3, 4, 5], Junk()
    plain = Recipe(str(tiny_gguf), OPTIONS, drafts=(), speculate=False)
    recipe = replace(plain, speculate=True, recent=recent, memory=junk)
    with built(recipe, tmp_path) as runtime:
        names = ["target", "mag", *(["recent"] * recent), "user", "bigram"]
        assert runtime.session.chain == names
        said = [
            [token.id for token in runtime.session.generate(prompt, max_tokens=24)]
            for _ in range(2)
        ]
        assert junk.asked
        assert not runtime.session.stats.faults
        runtime.session.close()
        with runtime.another_session(plain) as session:
            expected = [t.id for t in session.generate(prompt, max_tokens=24)]
    assert said == [expected, expected]


def test_sessions_of_a_model_share_recent_texts(tiny_gguf: Path, tmp_path: Path):
    recipe = Recipe(str(tiny_gguf), OPTIONS, drafts=())
    with built(recipe, tmp_path) as runtime:
        prompt = [1, 2, 3, 4, 5, 6, 7]
        for start in (prompt, [9, 9, 9]):
            for _ in runtime.session.generate(start, max_tokens=4):
                pass
        assert runtime.speculation is not None
        found = runtime.speculation.recent.match(prompt[:5], 2)
        assert found is not None
        assert found.tokens == [6, 7]
        runtime.session.close()
        with runtime.another_session(recipe) as session:
            sources = session.cascade.drafters
            (again,) = (one for one in sources if one.name == "recent")
            assert isinstance(again, Remembered)
            drafted = again.propose(Context([1, 2, 3, 4]), 3)
            assert drafted.tokens.tolist() == [5, 6, 7]
