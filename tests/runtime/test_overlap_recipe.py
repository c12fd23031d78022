"""With overlap, drafters have cores of their own; it is for the planner only."""

from __future__ import annotations

import pytest

from edgecs.decoding.kmatrix import KMatrix
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ConfigError
from edgecs.runtime import recipe as recipes
from edgecs.runtime.recipe import Recipe
from edgecs.sampling.cascade_rules import CascadeRule


@pytest.mark.parametrize(
    ("cores", "threads", "drafting", "expected"),
    [
        (1, 0, 0, (1, 1)),
        (2, 0, 0, (1, 1)),
        (8, 0, 0, (6, 2)),
        (8, 0, 3, (5, 3)),
        (8, 4, 0, (4, 2)),
        (8, 8, 8, (8, 8)),
    ],
)
def test_cores_are_divided(
    monkeypatch, cores: int, threads: int, drafting: int, expected: tuple[int, int]
):
    monkeypatch.setattr(recipes, "usable_cores", lambda: cores)
    options, small = LoadOptions(threads=threads), LoadOptions(threads=drafting)
    made = Recipe("m", options, drafts=("d",), draft_options=small, overlap="on")
    assert (made.target_options.threads, made.drafter_options.threads) == expected


@pytest.mark.parametrize(
    "changes", [{"overlap": "auto"}, {"overlap": "off"}, {"speculate": False}]
)
def test_threads_stay_as_they_are_without_it(changes):
    made = Recipe("m", drafts=("d",), **{"overlap": "on", **changes})
    assert (made.target_options.threads, made.drafter_options.threads) == (0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"matrix": KMatrix(((3, 0), (0, 0)))},
        {"accept": "block"},
        {"cascade": CascadeRule("chow", 0.5)},
    ],
)
def test_other_schedules_than_the_planners_are_refused(changes):
    with pytest.raises(ConfigError, match="overlap is for the planner"):
        Recipe("m", drafts=("d",), overlap="on", **changes)
    assert Recipe("m", drafts=("d",), **changes).overlap == "auto"
