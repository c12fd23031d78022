"""Planned trees on a real engine: the answers of plain decoding, and chains if strict.

The weights are random, so the two best logits of a row are far enough apart for the
order of the cells not to matter.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecs.core.context import Context
from edgecs.costs.cost_model import WIDEST, CostModel
from edgecs.decoding.exactness import Limits
from edgecs.drafters.registry import branches_of, usual_sources
from edgecs.engines.load_options import LoadOptions
from edgecs.planning.acceptance import Calibration
from edgecs.planning.planner import Planner
from edgecs.planning.trees import Trees
from edgecs.runtime.loader import load
from edgecs.sampling.settings import Sampling

LEAVES = 6
FLAT = {n: 1 + 0.01 * n for n in range(1, WIDEST + 1)}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_planned_trees_say_what_plain_decoding_says(
    tiny_gguf: Path, temperature: float
):
    options = LoadOptions(n_ctx=256, n_batch=64, threads=1, n_gpu_layers=0)
    sampling = Sampling(temperature, top_k=4 if temperature else 0, seed=3)
    prompts = [list(b"hello, hello, hello"), [9, 8, 9, 7, 9, 8]]

    def answers(loaded, **how) -> list[list[int]]:
        said = []
        with loaded.session(rule=loaded.rule(sampling), **how) as session:
            for prompt in (*prompts, prompts[1]):  # the last one is regenerated
                stream = session.generate(prompt, max_tokens=60)
                said.append([token.id for token in stream])
            assert not session.stats.faults
        return said

    with load(tiny_gguf, options) as loaded:
        plain = answers(loaded)
    sources, calibration, costs = usual_sources(trees=True), Calibration(), CostModel()
    costs.measured(0, FLAT)  # whatever this machine's calls take
    trees = Trees(branches_of(sources), calibration, LEAVES)
    clock = iter(range(1 << 30)).__next__
    planner = Planner(costs, calibration, sources, trees=trees, clock=clock)
    # Rounds do not teach the planner this machine's times, so it goes on with trees.
    planner.costs.observe = lambda *observed: None  # type: ignore[method-assign]
    branched = 0
    changed = LoadOptions(
        n_ctx=256, n_batch=64, threads=1, n_gpu_layers=0, leaves=LEAVES
    )
    with load(tiny_gguf, changed) as loaded:
        assert loaded.target.max_leaves == LEAVES
        draft = planner.draft

        def counted(context: Context, *rest):
            nonlocal branched
            gathered = draft(context, *rest)
            branched += not gathered.draft.is_chain
            return gathered

        planner.draft = counted  # type: ignore[method-assign]
        drafted = answers(loaded, schedule=planner, limits=Limits())
    assert drafted == plain
    assert branched > 2
