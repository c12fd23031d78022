"""The vertical cascade: what a drafter reviews."""

from __future__ import annotations

from edgecs.core.context import Context
from edgecs.sampling.chain import greedy
from edgecs_bench.simulation.replay_drafter import Watch
from tests.planning.timed_models import FLAT, STEEP, Near, Timed, planned


def reviewed(relative: dict[int, float]) -> tuple[int, int]:
    """Calls of a drafter that knows a repeating text, and the tokens it wrote."""
    target = Timed(Watch(), 12, 5, memory=1, single=20.0)
    model = Near(target, 0.0, single=8.0, relative=relative)
    planner = planned(target, [model])
    # Max-Gram proposes what the drafter reviews, and the target is not told of it.
    written = 0
    context = Context([0, *target.greedy([0], 60)])
    planner.begin()
    (neural,) = planner.neural
    while len(context) < 200:
        planner.ledger.settle(context)
        draft = neural.cascade.propose(context, 6, greedy)
        assert draft.tokens.tolist() == target.greedy(context.tokens, 6)
        planner.sources.propose(context, 6, planner.ledger)
        written += len(draft)
        context.append(draft.tokens[:4])
    return model.calls, written


def test_a_drafter_with_a_flat_curve_reviews_what_max_gram_copies():
    calls, written = reviewed(FLAT)
    assert calls < written / 2


def test_a_drafter_with_a_steep_curve_writes_token_by_token():
    calls, written = reviewed(STEEP)
    assert calls == written
