"""What is known about drafting for a loaded target, kept between runs.

Opening it finds the profile of this file, build, machine and these options, or probes
what fits a small budget; closing it saves what the rounds have taught.
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

from edgecs.calibrate.bundled_drafters import promise
from edgecs.calibrate.probe import QUICK, classify, curve
from edgecs.calibrate.profile import Key, Profile, Profiles, fingerprint
from edgecs.core.draft import LanguageModel
from edgecs.costs.cost_model import WIDEST, CostModel, best_width
from edgecs.decoding.cascade import NamedModel
from edgecs.decoding.exactness import Allowed, Classes, Exact, Limits, permitted
from edgecs.drafters.priors import packaged
from edgecs.drafters.registry import usual_sources
from edgecs.drafters.source import Keeper, Source
from edgecs.engines.host import Others
from edgecs.errors import Cancelled
from edgecs.planning.acceptance import Calibration
from edgecs.planning.neural_source import Writer
from edgecs.planning.planner import MARGIN, Planner

# chosen: a wait that a model's first start may have.
PROBE_SECONDS = 2.0  # most that probing may take at load
# chosen: too little of a start to be noticed.
PROBE_SHARE = 0.05  # of the time to load, for costs alone
# chosen: a few calls say what depth adds, many which widths are exact.
_FOR_DEPTH = 0.3  # of PROBE_SECONDS: for what depth adds
# chosen: far enough for attention to show, and inside most contexts.
_DEEP = 2048  # where that is measured
# chosen: past 512 cells, from where llama.cpp splits them (docs/concepts.md).
_TELLS = 700  # tokens of context within which a target that says so proves uniform
# chosen: a usual draft, and a median that an outlier does not move.
_WIDE, _REPEATS = 4, 5  # width and number of the wider calls there
# chosen: a single token and ends of tiles come first.
_COSTS = (1, 4, 2, 8, 3, 6)  # widths that are timed at load, the most telling first
# chosen: above what an idle desktop takes, below one busy core of four.
BUSY = 0.15  # share of the processors' time for others that makes times worthless
# chosen: systems count processors' time in hundredths of a second.
TELLING = 0.2  # seconds; in less time the share of others cannot be told
# chosen: the least that says what a drafter's draft and its review cost.
FIRST_WIDTHS = (1, 4)  # of a drafter: one token, and a review of three


NONSENSE = (ValueError, KeyError, TypeError, AttributeError)
"""What reading the numbers of a profile raises if they are none."""


class Known(NamedTuple):
    """What is known about a target."""

    costs: CostModel
    classes: Classes
    calibration: Calibration

    @classmethod
    def of(cls, profile: Profile) -> Known:
        """The numbers of a profile; raises one of NONSENSE."""
        return cls(
            CostModel.from_state(profile.costs),
            Classes.from_state(profile.classes),
            Calibration.from_state(profile.acceptance),
        )


class Speculation:
    """Costs, exact widths and acceptances of one target.

    target: empty, and nobody's. key: what the numbers depend on, None: they are not
    kept. exact: the tier that is asked for.
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
        self.notes: list[str] = []  # for people
        # Costs and classes as they were before a probe that others disturbed.
        self._before: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._key, self._profiles = key, profiles
        self._used: dict[str, CostModel] = {}  # of drafters, by fingerprint
        self._writers: dict[str, Writer] = {}  # the last planner's, likewise
        self._keepers: dict[str, Keeper] = {}  # its sources that keep something
        if key and profiles:
            self.profile, stale = profiles.load(key)
            if stale:
                self.notes.append(f"the profile is not used: {stale}")
        known = self._known()
        self.costs, self.classes, self.calibration = known
        self.limits = self._limits()

    def _known(self) -> Known:
        """What the profile says; if it makes no sense, it is as if never measured."""
        if self.profile:
            try:
                return Known.of(self.profile)
            except NONSENSE as error:
                self.notes.append(f"the profile makes no sense, not used: {error!r}")
                self.profile = None
        return Known(CostModel(), Classes(), Calibration())

    def _limits(self) -> Limits:
        return Limits(self.classes, self.exact, keeps=self.keeps)

    def prepare(
        self, load_seconds: float, progress: Callable[[str], None] = lambda text: None
    ) -> None:
        """Probes what no profile says, within a budget.

        Which widths are exact: within PROBE_SECONDS, or as long as it takes where
        strict was asked for. Its calls are timed too; where exactness does not matter,
        calls are timed within PROBE_SHARE of the time that loading took. What depth
        adds to a call is a part of both. On a machine that is busy with something else
        the times are used but not kept, and a note says so.
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
        """Costs and classes, as a profile has them."""
        return self.costs.state(), self.classes.state()

    def _probe(self, load_seconds: float, progress: Callable[[str], None]) -> None:
        began, budget = time.perf_counter(), PROBE_SECONDS
        if self.exact != "numeric":
            if not self.classes.inside or self.exact == "strict":
                progress("checking which widths give the same bits")
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
        """Times calls of a few widths until the time is up."""
        for width in _COSTS:
            single = float(self.costs.seconds(0)[0]) if self.costs.known else 0.0
            if time.perf_counter() + width * single > until:
                break
            took = curve(self.target, _near(self.target), [width], repeats=1)
            for seconds in took.values():
                self.costs.observe(width, _near(self.target), seconds)

    def _time_deep(self, budget: float) -> None:
        """Times calls of one and of four tokens deep in the context, if it has room.

        budget: seconds; a deep call is taken to be twice as long as a shallow one.
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
    ) -> Planner:
        """A schedule that uses and corrects what is known.

        fingerprints: of the models by name, so that their times are found again.
        """
        sources = usual_sources() if sources is None else sources
        self._give_back(sources)
        planner = Planner(
            self.costs,
            self.calibration,
            sources,
            models,
            longest=longest,
            lenience=lenience,
            ends=ends,
        )
        known = self._kept("drafters")
        told = {named.name: named.right for named in models}
        for writer in planner.writers:
            mark = (fingerprints or {}).get(writer.name, writer.name)
            if mark not in self._used:
                self._used[mark] = self._times_of(writer.cascade.reviewer, known, mark)
            writer.review.costs = self._used[mark]
            right = self._kept("right").get(mark)
            # What this machine has seen counts; without it, what its makers counted.
            right = right if isinstance(right, float) else told[writer.name]
            if right is not None and math.isfinite(right):
                writer.taught(right)
            self._writers[mark] = writer
        return planner

    def _give_back(self, sources: Sequence[Source]) -> None:
        """Gives sources what they kept; one that refuses it starts empty."""
        kept = self._kept("sources")
        self._keepers = {one.name: one for one in sources if isinstance(one, Keeper)}
        for name, keeper in self._keepers.items():
            if name in kept:
                with suppress(*NONSENSE):
                    keeper.take(kept[name])

    def _kept(self, name: str) -> dict[str, Any]:
        """What the profile has about drafters under a name; nothing if it is odd."""
        found = self.profile.chain.get(name) if self.profile else None
        return dict(found) if isinstance(found, dict) else {}

    def _times_of(
        self, model: LanguageModel, known: Mapping[str, Any], mark: str
    ) -> CostModel:
        """A drafter's times from the profile, or from one token and a short review.

        One that fails has none: a session parks it when it fails again.
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

        There auto is strict where the whole schedule is.
        """
        return Limits(
            self.classes,
            self.exact,
            keeps=lambda allowed, depth: float(width <= WIDEST and allowed[width - 1]),
        )

    def keeps(self, allowed: Allowed, depth: int) -> float:
        """Share of the speed that is left when only these widths may be used.

        Expected over typical proposals of Max-Gram, with the times that are known.
        """
        if not self.costs.known:
            return 1.0
        times = self.costs.times(depth)
        return _speed(permitted(times, allowed)) / _speed(times)

    def save(self) -> bool:
        """Keeps what is known now; False: nothing that can be kept, or no place."""
        if not (self._key and self._profiles and self.costs.known):
            return False
        profile = self.profile or Profile(self._key)
        # Probing leaves out what is known, so what is worthless must not be.
        profile.costs, profile.classes = self._before or self._states()
        profile.acceptance = self.calibration.state()
        self.profile = profile
        drafters, right = self._kept("drafters"), self._kept("right")
        if self._before is None:
            drafters.update({n: c.state() for n, c in self._used.items() if c.known})
        right.update({n: w.kept for n, w in self._writers.items() if w.known})
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
        except ValueError:  # what is not a number says nothing about the next run
            return False


def busy(others: Others) -> str | None:
    """That other programs computed while a model was timed; None: not so many."""
    share = others.share
    if share <= BUSY:
        return None
    return (
        f"other programs took {share:.0%} of the processors while the model was "
        "measured"
    )


def left_out(folder: Path, known: Speculation) -> str | None:
    """Why a drafter that comes with a model is not used here; None: it pays.

    What a tuning has found counts. Without one, what the drafter's makers have measured
    and the times of calls here promise something or not.
    """
    tuned = known.profile and _tuned(folder, known.profile)
    if tuned:
        chosen, why = tuned
        return None if chosen else why
    if not known.costs.known:
        return "as no call was timed yet"
    promised = promise(folder, known.costs.times(0))
    if promised > 1 + MARGIN:
        return None
    return f"as {promised:.2f} x plain decoding is expected of it here"


def _tuned(folder: Path, profile: Profile) -> tuple[bool, str] | None:
    """Whether a tuning has chosen a drafter, and why not; None: it was not tried."""
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
    """Tokens a second over typical proposals."""
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
