"""Models whose calls take known times, and tunings of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.core.draft import Request, Rows
from edgecs.costs.cost_model import WIDEST
from edgecs.runtime.loader import LoadedDrafter
from edgecs.testing.fakes import Endless, TableModel
from edgecs.text.detokenizer import Tokenizer
from edgecs.tuning.tuner import Effort, Tuned, tune
from tests.conftest import Outcome

Edgecs = Callable[..., Outcome]
Slowness = Callable[[float], float]

# Seconds by width, with tiles that end at 4 and at 8.
TILED = {1: 0.0100, 2: 0.0156, 3: 0.0208, 4: 0.0168, 5: 0.0320, 6: 0.0330, 7: 0.0345}
TILED |= {8: 0.0289, 12: 0.0397, 16: 0.0417, 32: 0.0800}


class Watch:
    """Shows the time that models say has gone by."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedModel(TableModel):
    """Its calls take as long as a curve says, on a clock of its own.

    slowness: of the machine at a time. outliers: share of calls that take three times
    as long.
    """

    def __init__(
        self,
        curve: dict[int, float],
        slowness: Slowness = lambda now: 1.0,
        *,
        outliers: float = 0.0,
        n_ctx: int = 512,
        seed: int = 0,
        clock: Watch | None = None,
    ) -> None:
        super().__init__(50, seed, n_ctx=n_ctx)
        self.clock = clock or Watch()
        self.widths: list[int] = []
        self._curve, self._slowness, self._outliers = curve, slowness, outliers
        self._random = np.random.default_rng(1)

    def rows(self, request: Request) -> Rows:
        width = 1 + len(request.draft)
        self.widths.append(width)
        unlucky = 3.0 if self._random.random() < self._outliers else 1.0
        seconds = self._curve[width] * self._slowness(self.clock.now) * unlucky
        self.clock.now += seconds
        return super().rows(request)


def times(**seconds: float) -> np.ndarray:
    """By width, as in times(w1=1.0, w2=1.2)."""
    every = np.full(WIDEST, np.inf)
    for name, value in seconds.items():
        every[int(name[1:]) - 1] = value
    return every


PROMPT = np.arange(30, dtype=np.int32) % 7


SHORT = Effort(repeats=1, tokens=12, widths=(2, 4))


def tuned_table(
    known: SpeculationProfile,
    *names: str,
    tokenizer: Tokenizer | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Tuned:
    """A short tuning of fakes; the first drafter is the target's twin."""
    drafters = [
        LoadedDrafter(name, TableModel(50, seed), name, None, lambda: None, f"f-{name}")
        for seed, name in enumerate(names)
    ]
    prompts = {"code": PROMPT, "question": PROMPT[:20]}
    return tune(
        known, tokenizer or Endless(), drafters, prompts, SHORT, progress=progress
    )
