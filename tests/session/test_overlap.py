"""Drafts made ahead with llama.cpp: two models in two threads, and the same answer."""

from __future__ import annotations

from concurrent.futures import wait
from pathlib import Path

import pytest

from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.engines.load_options import LoadOptions
from edgecs.planning.ahead import Ahead
from edgecs.planning.planner import Planner
from edgecs.planning.worker import WorkerThread
from edgecs.runtime.loader import Loaded, LoadedDrafter, load, load_drafter
from edgecs.sampling.settings import Sampling
from edgecs.testing.fakes import write_random_gguf
from tests.planning.timed_models import trusted

ALONE = LoadOptions(n_ctx=512, threads=1)


class Patient(WorkerThread):
    """A worker that makes all steps, however long they take beside the call."""

    def finish(self) -> None:
        if self._work is not None:
            wait([self._work])
        super().finish()


def overlapped(target: Loaded, drafter: LoadedDrafter) -> Planner:
    """A planner that believes its drafter to be fast and right."""
    known = SpeculationProfile(target.target)
    known.costs.measured(0, {n: 1.0 + n / 100 for n in range(1, 33)})
    planner = known.planner([drafter.named], [], ends=target.model.vocabulary.ends)
    planner.ahead = Ahead(target.model.vocabulary.ends, worker=Patient())
    (neural,) = planner.neural
    neural.costs.measured(0, {n: 0.1 + n / 1000 for n in range(1, 33)})
    trusted(neural)
    return planner


def same_answer(path: Path, drafts: Path, text: str, temperature: float, most: int):
    """What became of the drafts made ahead for an answer, which is compared."""
    with load(path, ALONE) as target, load_drafter(drafts, target, ALONE) as drafter:
        prompt = target.model.vocabulary.encode(text)
        rule = target.rule(Sampling(temperature=temperature, seed=5))
        with target.session(rule=rule) as session:
            plain = [token.id for token in session.generate(prompt, max_tokens=most)]
        target.target.reset()
        planner = overlapped(target, drafter)
        with target.session(schedule=planner, rule=rule) as session:
            said = [token.id for token in session.generate(prompt, max_tokens=most)]
            assert said == plain
            assert not session.stats.faults
            return session.stats.made_ahead()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_model_beside_itself_says_the_same(tiny_gguf: Path, temperature: float):
    told = same_answer(tiny_gguf, tiny_gguf, "Say it", temperature, 60)
    assert told["used"] > 0


def test_drafts_of_another_model_are_dropped(tiny_gguf: Path, tmp_path: Path):
    other = write_random_gguf(tmp_path / "other.gguf", seed=1)
    told = same_answer(tiny_gguf, other, "Say it", 0.0, 60)
    assert told["dropped"] == told["made"] - told["used"]


@pytest.mark.model
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_default_model_says_the_same(model_path: Path, temperature: float):
    text = "The days of the week are Monday, Tuesday, Wednesday,"
    told = same_answer(model_path, model_path, text, temperature, 48)
    assert told["used"] > 0
