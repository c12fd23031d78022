"""Models whose calls take virtual time, planners and cost curves for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from edgecs.core.draft import Request, Rows
from edgecs.costs.cost_model import WIDEST, CostModel
from edgecs.decoding.cascade import Cascade, NamedModel
from edgecs.decoding.exactness import Limits
from edgecs.drafters.maxgram import MaxGram
from edgecs.drafters.source import Source
from edgecs.planning.acceptance import Calibration, stated
from edgecs.planning.neural_source import NeuralSource
from edgecs.planning.planner import Planner
from edgecs.planning.trees import Trees
from edgecs.session.session import Session
from edgecs.testing.fakes import CachingModel, Endless
from edgecs_bench.hardware.curves import Curve, curve
from edgecs_bench.simulation.replay_drafter import Watch

FLAT = {1: 1.0, 2: 1.02, 4: 1.05, 8: 1.1, 16: 1.2, 32: 1.4}
STEEP = {1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0, 16: 16.0, 32: 32.0}

# Models whose calls take virtual time.


class Timed(CachingModel):
    """Its calls move a watch on; its law looks at the last few tokens only.

    relative: times by tokens fed, of the milliseconds of a single one. memory: tokens
    that the law depends on; few make greedy texts repeat themselves.
    """

    def __init__(
        self,
        watch: Watch,
        vocab: int,
        seed: int = 0,
        *,
        single: float = 10.0,
        relative: dict[int, float] = FLAT,
        memory: int = 4096,
        n_ctx: int = 4096,
    ) -> None:
        super().__init__(vocab, seed, n_ctx=n_ctx)
        self.watch, self.memory, self.calls = watch, memory, 0
        self.times = curve("", single, relative, 0.0).times / 1e3

    def law(self, prefix):
        return super().law(prefix[-self.memory :])

    def rows(self, request: Request) -> Rows:
        rows = super().rows(request)
        self.calls += 1
        self.watch.pass_by(float(self.times[min(rows.fed, WIDEST) - 1]))
        return rows

    def measured(self, costs: CostModel) -> None:
        """Tells a cost model all about it."""
        costs.measured(0, {n + 1: s for n, s in enumerate(self.times.tolist())})


class Near(Timed):
    """The target's logits with `noise` times those of another law."""

    def __init__(self, target: Timed, noise: float, seed: int = 99, **kwargs: Any):
        super().__init__(target.watch, target.vocab_size, seed, **kwargs)
        self.target, self.noise = target, noise

    def law(self, prefix):
        return self.target.law(prefix) + np.float32(self.noise) * super().law(prefix)


class Ending(Endless):
    """A tokenizer with end tokens of one's choice."""

    def __init__(self, ends: Sequence[int] = ()) -> None:
        super().__init__()
        self.ends = frozenset(ends)


def trusted(neural: NeuralSource) -> None:
    """Lets a neural believe that it was right for long."""
    evidence = stated([0.9] * 8, [None] * 8)
    for _ in range(20):
        neural.learn(evidence, 8, False)


def planned(
    target: Timed,
    models: Sequence[Any] = (),
    *,
    last: MaxGram | None = None,
    sources: Sequence[Source] | None = None,
    timed: bool = True,
    known: bool = True,
    trees: Callable[[Calibration], Trees] | None = None,
    **options: Any,
) -> Planner:
    """A planner of one's choice; timed: it knows all times, known: and its drafters.

    models: `Timed`, or others that tell their times as it does.
    """
    named = [NamedModel(f"d{i}", model) for i, model in enumerate(models)]
    clock = target.watch.now
    sources, calibration = sources or [last or MaxGram()], Calibration()
    planner = Planner(
        CostModel(),
        calibration,
        sources,
        named,
        clock=clock,
        trees=trees and trees(calibration),
        **options,
    )
    if timed:
        target.measured(planner.costs)
    for neural, model in zip(planner.neural, models, strict=True):
        if timed:
            model.measured(neural.costs)
        if known:
            trusted(neural)
    return planner


def opened(
    target: Timed,
    planner: Planner,
    *,
    ends: Sequence[int] = (),
    limits: Limits | None = None,
    **options: Any,
) -> Session:
    """A session on virtual time."""
    tokenizer = Ending(ends)
    session = Session(target, tokenizer, schedule=planner, limits=limits, **options)
    session.cascade = Cascade(
        target, planner, limits=limits, ends=tokenizer.ends, clock=target.watch.now
    )
    return session


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    """Anything from flat to steep, smooth or in tiles or bumpy."""
    single, width = draw(st.floats(2, 80)), np.arange(1, WIDEST + 1)
    kind = draw(st.sampled_from(["line", "power", "tiles", "bumps"]))
    slope = draw(st.floats(0, 1))
    if kind == "line":
        relative = 1 + slope * (width - 1)
    elif kind == "power":
        relative = width**slope
    elif kind == "tiles":
        tile = draw(st.sampled_from([2, 4, 8]))
        ragged = draw(st.floats(0, 0.5)) * ((width % tile != 0) & (width > 1))
        relative = 1 + 0.6 * slope * np.ceil((width - 1) / tile) + ragged
    else:
        random = np.random.default_rng(draw(st.integers(0, 999)))
        bumps = random.uniform(-0.2, 1, WIDEST)
        bumps[0] = 0
        relative = np.maximum(1, 1 + np.cumsum(bumps))
    overhead = draw(st.floats(0, 0.02)) * single
    return Curve(kind, single * relative, overhead)
