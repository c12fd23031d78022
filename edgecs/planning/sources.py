"""The model-free drafters of a planner: which are asked, and whose proposal is used."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from time import perf_counter
from typing import NamedTuple

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Draft, Remembering
from edgecs.core.faults import blame
from edgecs.decoding.static_schedule import Clock
from edgecs.drafters.source import Source, StoreSource
from edgecs.planning.acceptance import Acceptance, Calibration
from edgecs.planning.lookups import Lookups
from edgecs.planning.pending import Ledger

# chosen: in no measured curve does a token cost less than 1 % of a call.
NEGLIGIBLE = 0.01  # path probability below which a copy is cut off
# fitted: the prior gives at most 0.22 (`python -m edgecs_bench.prior`).
_VAGUE = 0.25  # probability that a copy after a match of one token hardly ever reaches
# chosen: `edgecs_bench.simulation.replay --max-gram-alone` shows what others add.
_PLENTY = 0.5  # expected tokens of a proposal above which no other source is asked
# measured: as fast as without this limit (`python -m edgecs_bench.simulation.replay`).
_LATER = 0.25  # limit of later tokens, as a share of the first token's

Path = list[float]
"""Probability that a draft is right up to each token, [tokens]."""


class Proposed(NamedTuple):
    """A source's proposal, with the probability that it is right up to each token."""

    source: str
    tokens: list[int]
    path: Path

    def draft(self, size: int | None = None) -> Draft:
        """The first `size` tokens as a draft, all of them by default."""
        tokens = self.tokens[:size]
        if not tokens:
            return NOTHING
        try:
            return Draft.chain(tokens, self.source)
        except Exception as error:
            blame(error, self.source)

    @property
    def sources(self) -> tuple[str, ...]:
        """The source of each token."""
        return (self.source,) * len(self.tokens)


NONE_PROPOSED = Proposed("", [], [])


class _Sound(NamedTuple):
    """A source that has not failed."""

    source: Source
    acceptance: Acceptance
    store: StoreSource | None  # the source, if it is a store
    lookups: Lookups


class Sources:
    """Model-free drafters and their acceptance probabilities.

    sources: ordered by usual quality, the best first. The others are asked where the
    first proposes few expected tokens, and stores where a lookup is worth its time; the
    proposal with the most expected tokens is used, and acceptances learn from all of
    them. ends: end-of-generation tokens, after which a proposal stops. clock: returns
    seconds.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        calibration: Calibration,
        ends: Container[int] = (),
        clock: Clock = perf_counter,
    ) -> None:
        self.all = tuple(sources)
        self._sound = [_sound(source, calibration) for source in sources]
        self._have_stores = any(one.store for one in self._sound)
        self._ends = ends
        self._clock = clock

    @property
    def have_stores(self) -> bool:
        """Whether some of them are stores, which are asked by the time they take."""
        return self._have_stores

    def park(self, name: str) -> None:
        """Stop using a source that failed."""
        self._sound = [one for one in self._sound if one.source.name != name]
        self._have_stores = any(one.store for one in self._sound)

    def allow(self, allowed: bool) -> None:
        """Whether the next answer uses stores and may be added to them."""
        for source in self.all:
            if isinstance(source, Remembering):
                source.allow(allowed)

    def propose(
        self,
        context: Context,
        most: int,
        ledger: Ledger | None = None,
        least: float = 0.0,
        token_seconds: float = math.inf,
    ) -> Proposed:
        """At most `most` tokens of one source, with their path probabilities.

        The proposal stops after an end token, or where its path probability becomes
        negligible. ledger: records the proposals to learn from them. least: probability
        below which a first token cannot pay. token_seconds: what an additional token
        saves.
        """
        best, promised = NONE_PROPOSED, 0.0
        if most <= 0:
            return best
        for one in self._sound:
            if one.store is None:
                if promised > _PLENTY:
                    continue
            elif not (
                one.lookups.pay(promised, token_seconds)
                if ledger is None
                else one.lookups.due(promised, token_seconds)
            ):
                continue
            try:
                if one.store is None:
                    found = self._of(one, context, most, ledger, least, ())
                else:
                    found = self._looked_up(one, context, most, ledger, least, best)
            except Exception as error:
                blame(error, one.source.name)
            if (promises := sum(found.path)) > promised:
                best, promised = found, promises
        return best

    def _looked_up(
        self,
        one: _Sound,
        context: Context,
        most: int,
        ledger: Ledger | None,
        least: float,
        best: Proposed,
    ) -> Proposed:
        """The proposal of a store; what it adds and its time are learned from it."""
        began = self._clock()
        found = self._of(one, context, most, ledger, least, best.tokens)
        if ledger is not None:  # drafts of drafters are another matter
            added = _gain(found.path, least) - _gain(best.path, least)
            seconds = self._clock() - began
            one.lookups.learn(sum(best.path), max(0.0, added), seconds)
        return found

    def _of(
        self,
        one: _Sound,
        context: Context,
        most: int,
        ledger: Ledger | None,
        least: float,
        beside: Sequence[int],
    ) -> Proposed:
        source, acceptance = one.source, one.acceptance
        path: Path = []
        tokens, certainty = source.continuation(context, most)[:most], 1.0
        if not tokens or (least > _VAGUE and source.is_vague):
            return NONE_PROPOSED
        if one.store:
            one.store.compare(beside)
        evidence: list[Sequence[int]] = []
        enough = max(least, NEGLIGIBLE)
        for token, buckets in zip(tokens, source.evidence(tokens), strict=False):
            certainty *= acceptance.odds(buckets)
            path.append(certainty)
            evidence.append(buckets)
            if token in self._ends or certainty < enough:
                break
            enough = max(_LATER * least, NEGLIGIBLE)
        tokens = tokens[: len(path)]
        if ledger is not None:
            ledger.note(context, tokens, evidence, acceptance)
        return Proposed(source.name, tokens, path)


def _gain(path: Path, least: float) -> float:
    """Expected tokens of a draft, less those that its cost is worth at least.

    least: cost of a drafted token, in plain calls.
    """
    return sum(chance - least for chance in path if chance > least)


def _sound(source: Source, calibration: Calibration) -> _Sound:
    store = source if isinstance(source, StoreSource) else None
    return _Sound(source, calibration.source(source), store, Lookups())
