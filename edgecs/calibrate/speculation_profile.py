"""Costs, exact widths and acceptances of a loaded target, stored between runs.

Opening loads the profile of this model file, build, machine and options, or probes
within a small budget; closing saves what was learned from the rounds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgecs.calibrate.bundled_drafters import expected_speedup
from edgecs.calibrate.probe import QUICK, classify, curve
from edgecs.calibrate.profile import Key, Profile, Profiles, fingerprint
from edgecs.core.draft import LanguageModel
from edgecs.costs.cost_model import WIDEST, CostModel, best_width
from edgecs.costs.rollback_cost import RollbackCost
from edgecs.decoding.cascade import NamedModel
from edgecs.decoding.exactness import Allowed, Classes, Limits, permitted
from edgecs.decoding.overlap import Overlap
from edgecs.decoding.tiers import Exact
from edgecs.drafters.corpus import Corpus
from edgecs.drafters.priors import packaged
from edgecs.drafters.recent_texts import RecentTexts
from edgecs.drafters.recycling_table import RecyclingTable
from edgecs.drafters.registry import branches_of, usual_sources
from edgecs.drafters.source import Keeper, Source
from edgecs.engines.host import Others, busiest
from edgecs.errors import Cancelled
from edgecs.planning.acceptance import Calibration
from edgecs.planning.ahead import Ahead
from edgecs.planning.neural_source import NeuralSource
from edgecs.planning.planner import MARGIN, Planner
from edgecs.planning.trees import Trees

# chosen: an acceptable delay of a model's first start.
PROBE_SECONDS = 2.0  # time limit of probing at load
# chosen: too small a share of a start to be noticed.
PROBE_SHARE = 0.05  # share of the load time for timing calls only
# chosen: depth needs a few calls, exact widths need many.
_FOR_DEPTH = 0.3  # share of PROBE_SECONDS for the time that depth adds
# chosen: deep enough for attention to matter, and inside most contexts.
_DEEP = 2048  # depth of the deep calls
# chosen: past 512 cells, from where llama.cpp splits them (docs/concepts.md).
_TELLS = 700  # tokens of context that are probed of a target that reports `uniform`
# chosen: a usual draft, and a median that is robust to an outlier.
_WIDE, _REPEATS = 4, 5  # width and number of the wider calls there
# chosen: a single token and tile sizes come first.
_COSTS = (1, 4, 2, 8, 3, 6)  # widths that are timed at load, in this order
# chosen: above the load of an idle desktop, below one busy core of four.
BUSY = 0.15  # share of CPU time used by other programs that invalidates times
# chosen: systems count CPU time in hundredths of a second.
TELLING = 0.2  # seconds; the share of other programs is not reliable in less time
# chosen: the fewest calls that measure a drafter's step and its review.
FIRST_WIDTHS = (1, 4)  # of a drafter: one token, and a review of three


NONSENSE = (ValueError, KeyError, TypeError, AttributeError)
"""Exceptions that reading invalid numbers of a profile raises."""


class Known(NamedTuple):
    """Measurements and statistics of a target."""

    costs: CostModel
    classes: Classes
    calibration: Calibration

    @classmethod
    def of(cls, profile: Profile) -> Known:
        """Read the numbers of a profile; raises one of NONSENSE if they are invalid."""
        return cls(
            CostModel.from_state(profile.costs),
            Classes.from_state(profile.classes),
            Calibration.from_state(profile.acceptance),
        )


class SpeculationProfile:
    """Costs, exact widths and acceptances of one target.

    target: its cache is empty and it is not in use. key: what the numbers depend on,
    None: they are not stored. exact: the requested tier.
    """

    def __init__(
        self,
        target: LanguageModel,
        *,
        exact: Exact = "auto",
        key: Key | None = None,
        profiles: Profiles | None = None,
    ) -> None:
        self.target = target
        self.exact: Exact = exact
        self.profile: Profile | None = None
        self.notes: list[str] = []  # messages for the user
        # Costs and classes as they were before a probe disturbed by other programs.
        self._before: tuple[dict[str, Any], dict[str, Any]] | None = None
        # Of all sessions.
        self.recent, self.recycling = RecentTexts(), RecyclingTable()
        self.phrases: Corpus | None = None
        self._key, self._profiles = key, profiles
        self._used: dict[str, CostModel] = {}  # of drafters, by fingerprint
        # Of all planners, one for each slot of a server, by fingerprint.
        self._writers: dict[str, list[NeuralSource]] = {}
        self._keepers: dict[str, Keeper] = {}  # its sources with persistent state
        if key and profiles:
            self.profile, stale = profiles.load(key)
            if stale:
                self.notes.append(f"the profile is not used: {stale}")
        known = self._known()
        self.costs, self.classes, self.calibration = known
        self.limits = self._limits()

    def _known(self) -> Known:
        """The numbers of the profile; initial values if they are invalid."""
        if self.profile:
            try:
                return Known.of(self.profile)
            except NONSENSE as error:
                self.notes.append(f"the profile is invalid and not used: {error!r}")
                self.profile = None
        return Known(CostModel(), Classes(), Calibration())

    def _limits(self) -> Limits:
        return self.limits_of(self.exact)

    def limits_of(self, exact: Exact) -> Limits:
        """Permitted widths with a tier, as far as they are known."""
        return Limits(
            self.classes,
            exact,
            keeps=self.keeps,
            removable=self._removable,
            steady=self._steady,
        )

    @property
    def _removable(self) -> int | None:
        return getattr(self.target, "snapshots", None)

    @property
    def _steady(self) -> int | None:
        return getattr(self.target, "steady", None)

    def rollback(self) -> RollbackCost:
        """What a rejected draft costs, for a planner with these times."""
        return RollbackCost(
            self.costs,
            self._removable,
            lambda: float(getattr(self.target, "restoring", 0.0)),
        )

    def prepare(
        self, load_seconds: float, progress: Callable[[str], None] = lambda text: None
    ) -> None:
        """Probe what the profile lacks, within a budget.

        Exact widths are probed within PROBE_SECONDS, or without a limit for the strict
        tier, and these calls are timed. Where exactness does not matter, calls are
        timed within PROBE_SHARE of the load time. Both include the time that depth
        adds. On a machine that is busy with other programs the times are used but not
        stored, and a note reports it.
        """
        if not self.target.rewindable:
            return
        others, before, began = Others(), self._states(), time.perf_counter()
        self._probe(load_seconds, progress)
        telling = time.perf_counter() - began > TELLING
        if telling and self._states() != before and (why := busy(others)):
            self._before = before
            self.notes.append(f"{why}: it will be measured again at the next start")
        self.limits = self._limits()

    def _states(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Costs and classes, as stored in a profile."""
        return self.costs.state(), self.classes.state()

    def _probe(self, load_seconds: float, progress: Callable[[str], None]) -> None:
        began, budget = time.perf_counter(), PROBE_SECONDS
        if self.exact != "numeric":
            if not self.classes.inside or self.exact == "strict":
                progress("measuring this model, once: which calls are bit-exact")
                until = began + budget * (1 - _FOR_DEPTH)
                until = np.inf if self.exact == "strict" else until
                uniform = getattr(self.target, "uniform", False)
                classify(
                    self.target,
                    self.classes,
                    QUICK,
                    self.costs,
                    until=until,
                    deepest=_TELLS if uniform else None,
                )
                if uniform and getattr(self.target, "uniform", False):
                    self.classes.extend(self.target.n_ctx)
        elif not self.costs.known:
            budget = min(budget, PROBE_SHARE * load_seconds)
            self._time(began + budget * (1 - _FOR_DEPTH))
        if self.costs.known and not self.costs.knows_depth:
            self._time_deep(budget * _FOR_DEPTH)

    def _time(self, until: float) -> None:
        """Time calls of a few widths until the time is up."""
        for width in _COSTS:
            single = float(self.costs.seconds(0)[0]) if self.costs.known else 0.0
            if time.perf_counter() + width * single > until:
                break
            took = curve(self.target, _near(self.target), [width], repeats=1)
            for seconds in took.values():
                self.costs.observe(width, _near(self.target), seconds)

    def _time_deep(self, budget: float) -> None:
        """Time calls of one and of four tokens deep in the context, if it has room.

        budget: seconds; a deep call is assumed to take twice as long as a shallow one.
        """
        depth = min(_DEEP, self.target.n_ctx - 2 * WIDEST)
        single, *_, wide = self.costs.times(0, _WIDE)
        repeats = min(_REPEATS, int(budget / (2 * (single + wide))))
        if depth > 0 and wide < np.inf and repeats > 0:
            took = curve(self.target, depth, (1, _WIDE), repeats)
            self.costs.measured(depth, took)

    def planner(
        self,
        models: Sequence[NamedModel] = (),
        sources: Sequence[Source] | None = None,
        *,
        longest: int = WIDEST - 1,
        fingerprints: Mapping[str, str] | None = None,
        lenience: float = 1.0,
        ends: Container[int] = (),
        overlap: Overlap = "off",
    ) -> Planner:
        """A schedule that uses and updates the measurements.

        fingerprints: of the models by name; their times are stored under these.
        overlap: whether a model drafts while the target computes, see `ahead`.
        """
        marks = [(fingerprints or {}).get(named.name, named.name) for named in models]
        goes_on = overlap == "on" or (
            overlap == "auto" and any(map(self._overlap_pays, marks))
        )
        leaves = self._leaves
        if sources is None:
            sources = usual_sources(trees=leaves > 1)
        self._give_back(sources)
        planner = Planner(
            self.costs,
            self.calibration,
            sources,
            models,
            longest=longest,
            lenience=lenience,
            ends=ends,
            rollback=self.rollback(),
            trees=self._trees(sources, leaves, ends) if leaves > 1 else None,
            ahead=Ahead(ends) if goes_on and models else None,
        )
        known = self._kept("drafters")
        told = {named.name: named.right for named in models}
        for neural in planner.neural:
            mark = (fingerprints or {}).get(neural.name, neural.name)
            if mark not in self._used:
                self._used[mark] = self._times_of(neural.cascade.reviewer, known, mark)
            neural.review.costs = self._used[mark]
            right = self._kept("right").get(mark)
            # The share observed on this machine takes precedence over the manifest's.
            right = right if isinstance(right, float) else told[neural.name]
            if right is not None and math.isfinite(right):
                neural.start_from(right)
            self._writers.setdefault(mark, []).append(neural)
        return planner

    @property
    def _leaves(self) -> int:
        """Most leaves of a draft; 1 if rejected tokens cannot just be removed."""
        return self.target.max_leaves if self._removable is None else 1

    def _trees(
        self, sources: Sequence[Source], leaves: int, ends: Container[int]
    ) -> Trees:
        """Trees where the target's rows need not be those of plain decoding."""
        return Trees(
            branches_of(sources),
            self.calibration,
            leaves,
            allowed=lambda depth: self.limits.tier(depth) != "strict",
            ends=ends,
        )

    def _give_back(self, sources: Sequence[Source]) -> None:
        """Restore the state of sources; one that rejects its state starts empty."""
        kept = self._kept("sources")
        self._keepers = {one.name: one for one in sources if isinstance(one, Keeper)}
        for name, keeper in self._keepers.items():
            if name in kept:
                with suppress(*NONSENSE):
                    keeper.take(kept[name])

    def _overlap_pays(self, mark: str) -> bool:
        """Whether a tuning found that a drafter should go on during calls."""
        return self._kept("overlap").get(mark) is True

    def _kept(self, name: str) -> dict[str, Any]:
        """An entry of the profile's drafter data; empty if it is not a dict."""
        found = self.profile.chain.get(name) if self.profile else None
        return dict(found) if isinstance(found, dict) else {}

    def _times_of(
        self, model: LanguageModel, known: Mapping[str, Any], mark: str
    ) -> CostModel:
        """A drafter's times from the profile, or from one token and a short review.

        They are empty if a call fails: a session parks the drafter at its next failure.
        """
        try:
            return CostModel.from_state(known[mark])
        except NONSENSE:
            costs, depth = CostModel(), _near(model)
        try:
            for width, seconds in curve(model, depth, FIRST_WIDTHS, repeats=1).items():
                costs.observe(width, depth, seconds)
        except Cancelled:
            raise
        except Exception:
            return CostModel()
        return costs

    def fixed(self, width: int) -> Limits:
        """Limits for a schedule whose drafts make calls of up to `width` tokens.

        The auto tier is strict where calls of that width are exact.
        """
        return Limits(
            self.classes,
            self.exact,
            keeps=lambda allowed, depth: float(width <= WIDEST and allowed[width - 1]),
            removable=self._removable,
            steady=self._steady,
        )

    def keeps(self, allowed: Allowed, depth: int) -> float:
        """Share of the throughput that remains when only these widths are allowed.

        Expected over typical proposals of Max-Gram, with the measured times.
        """
        if not self.costs.known:
            return 1.0
        times = self.costs.times(depth)
        return _speed(permitted(times, allowed)) / _speed(times)

    def save(self) -> bool:
        """Save the profile; returns False if there is nothing to save or nowhere."""
        if not (self._key and self._profiles and self.costs.known):
            return False
        profile = self.profile or Profile(self._key)
        # A probe skips what the profile has, so disturbed numbers are not stored.
        profile.costs, profile.classes = self._before or self._states()
        profile.acceptance = self.calibration.state()
        self.profile = profile
        drafters, right = self._kept("drafters"), self._kept("right")
        if self._before is None:
            drafters.update({n: c.state() for n, c in self._used.items() if c.known})
        for mark, writers in self._writers.items():
            most = max(writers, key=lambda writer: writer.observed)
            if most.known:
                right[mark] = most.long_term_rate
        sources = self._kept("sources")
        sources.update({name: one.state() for name, one in self._keepers.items()})
        profile.chain = {
            **profile.chain,
            "drafters": drafters,
            "right": right,
            "sources": sources,
        }
        try:
            return self._profiles.save(profile)
        except ValueError:  # a value is not finite
            return False


def busy(others: Others) -> str | None:
    """A message if other programs disturbed the measurement of a model, else None."""
    share = others.share
    if share <= BUSY:
        return None
    name = busiest()
    most = f" (mostly {name})" if name else ""
    return (
        f"other programs{most} took {share:.0%} of the processors while the model was "
        "measured"
    )


def left_out(folder: Path, known: SpeculationProfile) -> str | None:
    """Why a bundled drafter is not used on this machine; None: it pays.

    The result of a tuning takes precedence. Without one, the expected speedup is
    computed from the drafter's manifest and the call times on this machine.
    """
    tuned = known.profile and _tuned(folder, known.profile)
    if tuned:
        chosen, why = tuned
        return None if chosen else why
    if not known.costs.known:
        return "as no call was timed yet"
    promised = expected_speedup(folder, known.costs.times(0))
    if promised > 1 + MARGIN:
        return None
    return f"as its expected speedup on this machine is {promised:.2f}x"


def _tuned(folder: Path, profile: Profile) -> tuple[bool, str] | None:
    """Whether a tuning chose a drafter, and why not; None: it was not tried."""
    tried, chosen = profile.chain.get("tried"), profile.chain.get("chosen")
    if not (profile.tuned and tried and isinstance(tried, dict)):
        return None
    name = tried.get(fingerprint(folder))
    if name is None or not isinstance(chosen, list):
        return None
    why = f"{' <- '.join(map(str, chosen))} is chosen"
    with suppress(*NONSENSE):
        rows = [row for row in profile.chain["table"] if name in row["chain"]]
        why = str(max(rows, key=lambda row: float(row["mean"]))["verdict"])
    return name in chosen, f"tuned on {profile.tuned[:10]}: {why}"


def _near(model: LanguageModel) -> int:
    """A small depth that even a tiny context has room for."""
    return min(24, model.n_ctx // 4)


def _speed(times: list[float]) -> float:
    """Tokens per second over typical proposals."""
    tokens = seconds = 0.0
    for path in typical():
        width = best_width(path, times, MARGIN).width
        tokens += 1 + sum(path[: width - 1])
        seconds += times[width - 1]
    return tokens / seconds


@cache
def typical() -> tuple[list[float], ...]:
    """Path probabilities of Max-Gram's proposals at positions of many texts."""
    return tuple(packaged()["paths"])
