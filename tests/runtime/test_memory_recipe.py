"""The stores of a recipe: shared by the sessions of a model, and left out if asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from edgecs.core.context import Context
from edgecs.drafters.corpus import Match
from edgecs.drafters.recent_texts import RecentTexts
from edgecs.drafters.registry import NAMES, usual_sources
from edgecs.drafters.remembered import Remembered
from edgecs.engines.load_options import LoadOptions
from edgecs.memory.keeping import Wanted
from edgecs.memory.model_files import listed_files
from edgecs.memory.phrases import write_phrases
from edgecs.runtime.builder import Runtime, build, find_files
from edgecs.runtime.folders import Folders
from edgecs.runtime.loader import load
from edgecs.runtime.recipe import Recipe
from edgecs.runtime.remembering import identity_of
from edgecs.runtime.target import Reports

OPTIONS = LoadOptions(n_ctx=256, n_batch=64, threads=1, n_gpu_layers=0)


class Junk:
    """A corpus of ids that no model has, and of one that every model has."""

    asked = 0

    def match(self, end: Sequence[int], k: int) -> Match | None:
        self.asked += 1
        return Match(32, 16, 16, [1, 1 << 40, -7][:k])


@contextmanager
def built(
    recipe: Recipe, folder: Path, reports: Reports | None = None
) -> Iterator[Runtime]:
    folders = Folders(folder, offline=True)
    with build(recipe, find_files(recipe, folders), folders, reports) as runtime:
        yield runtime


def test_all_names_are_reserved():
    sources = usual_sources(
        trees=True, recent=RecentTexts(), memory=Junk(), phrases=Junk()
    )
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


TREES = replace(OPTIONS, leaves=4)


def answered(
    recipe: Recipe, folder: Path, *, memory: bool = True
) -> tuple[list[int], list[str]]:
    with built(recipe, folder) as runtime:
        session = runtime.session
        tokens = session.generate([1, 2, 3, 4, 5], max_tokens=24, memory=memory)
        return [token.id for token in tokens], session.chain


def test_phrases_of_a_model_are_the_last_store_and_change_no_answer(
    tiny_gguf: Path, tmp_path: Path
):
    plain = Recipe(str(tiny_gguf), OPTIONS, drafts=(), speculate=False)
    expected, _ = answered(plain, tmp_path)
    with load(tiny_gguf, OPTIONS) as loaded:
        model = identity_of(loaded)
    folder = tmp_path / "memory"
    wrong = [[1, 2, 3, 4, 5, 6], [*expected[:6], 9, 9]]
    write_phrases(folder, model, wrong)
    store = Wanted(folder, keeps=False)
    recipe = replace(plain, speculate=True, store=store)
    assert answered(recipe, tmp_path) == (
        expected,
        ["target", "mag", "recent", "phrases", "bigram"],
    )
    assert not (folder / "memory.db").exists()
    (file,) = listed_files(folder)
    file.path.write_bytes(file.path.read_bytes()[:-5])
    told = list[str]()
    reports = Reports(told.append, lambda text: None, once=lambda text: None)
    with built(recipe, tmp_path, reports) as runtime:
        assert "phrases" not in runtime.session.chain
    assert len(told) == 1
    assert "`edgecs memory build` writes them again" in told[0]


@pytest.mark.parametrize("agreed", [True, False])
def test_recycled_rows_are_kept_where_answers_may_be(
    tiny_gguf: Path, tmp_path: Path, agreed: bool
):
    folder = tmp_path / "memory"
    store = Wanted(folder, keeps=True, allowed=lambda: agreed)
    recipe = Recipe(str(tiny_gguf), TREES, drafts=(), exact="numeric", store=store)
    answered(recipe, tmp_path, memory=False)
    assert [one.kind for one in listed_files(folder)] == []
    said, _ = answered(recipe, tmp_path)
    assert [one.kind for one in listed_files(folder)] == ["recycling"] * agreed
    with built(recipe, tmp_path) as runtime:
        assert runtime.speculation is not None
        rows = runtime.speculation.recycling.after_two
        pairs = {*pairwise(said)}
        assert bool(pairs & {*rows}) is agreed


def test_an_audit_reads_recycled_rows_and_writes_none(tiny_gguf: Path, tmp_path: Path):
    store = Wanted(tmp_path / "memory")
    recipe = Recipe(str(tiny_gguf), TREES, drafts=(), exact="numeric", store=store)
    answered(recipe, tmp_path)
    (file,) = listed_files(store.folder)
    before = file.path.read_bytes()
    answered(replace(recipe, store=replace(store, keeps=False)), tmp_path)
    assert file.path.read_bytes() == before
