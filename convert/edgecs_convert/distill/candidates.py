"""Candidates of a distillation: exported drafters, measured on unseen topics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgecs.calibrate.probe import curve
from edgecs.runtime.loader import Loaded
from edgecs.theory import draft_speedup
from edgecs_convert.distill.data import Opened, Wanted
from edgecs_convert.distill.drafter_kinds import Kind
from edgecs_convert.distill.measure import (
    Counts,
    Worth,
    counts,
    measured_samples,
    worth,
)
from edgecs_convert.distill.samples import Sample

_TIMED = 1000  # drafts that are timed here if others count the right ones
_WIDTHS = (1, 2, 3, 4)  # timed calls of the target
_READ = 32  # tokens of context for them


@dataclass(frozen=True)
class Candidate:
    """A finished drafter with its measurements on this machine."""

    name: str
    path: Path
    coverage: float  # share of the target's tokens in its vocabulary, on unseen topics
    worth: Worth
    single: float  # seconds of a target call of one token
    speedup: float  # expected for greedy answers, over plain decoding
    ideal: float  # the same, if wider calls of the target cost nothing more

    def state(self) -> dict[str, Any]:
        """The candidate as plain numbers; times that were not measured are left out."""
        took = round(self.worth.seconds * 1e3, 3)
        return {
            "coverage": round(self.coverage, 4),
            "agreement": [round(share, 4) for share in self.worth.shares],
            **({"ms_a_token": took} if took else {}),
            "target_ms": round(self.single * 1e3, 3),
            "expected_speedup": round(self.speedup, 3),
        }


class Helpers(Protocol):
    """Others that write answers and try drafters, such as `fleet_work`."""

    def answering(self, wanted: Wanted) -> Opened:
        """Those that answer, see `write_samples`."""

    def tried(self, kind: Kind, path: Path, samples: Sequence[Sample]) -> Counts:
        """How often drafts of an exported drafter are right in samples."""


def measured(
    kind: Kind,
    path: Path,
    loaded: Loaded,
    unseen: Sequence[Sample],
    helpers: Helpers | None,
) -> Worth:
    """Measures an exported drafter on unseen topics.

    Helpers count right drafts; the time is always measured on this machine.
    """
    with kind.opened(path, loaded) as opened:
        if helpers is None:
            return worth(opened, unseen, loaded.cancel)
        few = measured_samples(unseen, _TIMED)
        seconds = counts(opened, few, loaded.cancel).summed_up().seconds
    tried = helpers.tried(kind, path, measured_samples(unseen))
    return tried.summed_up()._replace(seconds=seconds)


def candidate(
    name: str, path: Path, coverage: float, found: Worth, times: dict[int, float]
) -> Candidate:
    """A drafter with its measurements; coverage: of its vocabulary on unseen topics."""
    ideal = dict.fromkeys(times, times[1])
    return Candidate(
        name,
        path,
        coverage,
        found,
        times[1],
        draft_speedup(found.shares, found.seconds, times),
        draft_speedup(found.shares, found.seconds, ideal),
    )


def call_times(loaded: Loaded) -> dict[int, float]:
    """Seconds of a target's calls by width."""
    loaded.target.reset()
    return curve(loaded.target, _READ, _WIDTHS, repeats=5)
