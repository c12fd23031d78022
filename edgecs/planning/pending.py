"""Proposals whose worth shows when the text has gone on.

Every proposal teaches what it would have earned, verified or not.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import NamedTuple, Protocol

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Draft
from edgecs.core.faults import blame
from edgecs.drafters.source import LOOKED_AT, Source
from edgecs.planning.acceptance import Acceptance, Calibration, Evidence

# chosen: no curve that was measured has a token for 1 % of a call.
NEGLIGIBLE = 0.01  # a copy ends where the chance that it is right is below this
# fitted: the prior gives it 0.22 at most (`python -m edgecs_bench.prior`).
_VAGUE = 0.25  # what a copy that only one token speaks for hardly ever reaches
# chosen: `edgecs_bench.simulation.replay --max-gram-alone` shows what others add.
_PLENTY = 0.5  # tokens that a proposal promises, beside which no other is asked for
# measured: as fast as looking on (`python -m edgecs_bench.simulation.replay`).
_LATER = 0.25  # of what its first token must have, as further calls may cost less

Path = list[float]
"""Probability that a draft is right up to each token, [tokens]."""


class Learner(Protocol):
    """Who wants to know what came of a proposal."""

    def learn(self, evidence: Evidence, right: int, decided: bool) -> None:
        """See `Acceptance.learn`."""


class _Proposal(NamedTuple):
    start: int  # tokens before it
    tokens: list[int]
    evidence: Evidence
    learner: Learner


class Ledger:
    """Proposals that wait for the committed text to reach or to contradict them."""

    def __init__(self) -> None:
        self._waiting: list[_Proposal] = []  # the earliest start first
        self._root: Context | None = None
        self._shown = 0  # tokens of the text when it was last looked at

    def note(
        self, context: Context, tokens: list[int], evidence: Evidence, learner: Learner
    ) -> None:
        """Remembers what was proposed to follow a context, as far as one looks."""
        few = tokens[:LOOKED_AT]
        known = evidence[: len(few)]
        self._waiting.append(_Proposal(len(context), few, known, learner))

    def settle(self, context: Context) -> None:
        """Tells the learners of all proposals whose worth shows by now."""
        if context.root is not self._root:
            self.close()
        self._root, self._shown = context.root, context.committed
        if not self._waiting:
            return
        first = self._waiting[0].start
        true = context.tokens[first : self._shown].tolist()
        still = []
        for proposal in self._waiting:
            tokens, at = proposal.tokens, proposal.start - first
            size = min(len(true) - at, len(tokens))
            right = 0
            while right < size and true[at + right] == tokens[right]:
                right += 1
            if right == size < len(tokens):
                still.append(proposal)
            else:
                proposal.learner.learn(proposal.evidence, right, right < size)
        self._waiting = still

    def close(self) -> None:
        """The answer is over: what follows is not the target's.

        Of what still waits no more is known than showed when it was last settled.
        """
        for proposal in self._waiting:
            right = max(0, self._shown - proposal.start)
            proposal.learner.learn(proposal.evidence, right, False)
        self._waiting = []


class Proposed(NamedTuple):
    """What a source proposes, and how likely it is right up to each token."""

    source: str
    tokens: list[int]
    path: Path

    def draft(self, size: int | None = None) -> Draft:
        """Its first `size` tokens as a draft, all of them by default."""
        tokens = self.tokens[:size]
        if not tokens:
            return NOTHING
        try:
            return Draft.chain(tokens, self.source)
        except Exception as error:
            blame(error, self.source)

    @property
    def sources(self) -> tuple[str, ...]:
        """Who wrote each token."""
        return (self.source,) * len(self.tokens)


NONE_PROPOSED = Proposed("", [], [])


class Sources:
    """Drafters without a model, and how likely it is that they are right.

    sources: the one that is usually best first. Others are asked where it has little to
    say, and the proposal that promises most tokens is taken; all of them teach. ends:
    end-of-generation tokens, nothing follows them.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        calibration: Calibration,
        ends: Container[int] = (),
    ) -> None:
        self.all = tuple(sources)
        self._sound = [(source, calibration.source(source)) for source in sources]
        self._ends = ends

    def park(self, name: str) -> None:
        """Leaves one alone that failed."""
        self._sound = [pair for pair in self._sound if pair[0].name != name]

    def propose(
        self,
        context: Context,
        most: int,
        ledger: Ledger | None = None,
        least: float = 0.0,
    ) -> Proposed:
        """At most `most` tokens and their path probabilities, of one source.

        It ends with an end token, or where hardly a chance is left that it is right.
        ledger: where proposals are noted, to learn from them. least: the chance without
        which a first token cannot pay.
        """
        best, promised = NONE_PROPOSED, 0.0
        if most <= 0:
            return best
        for source, acceptance in self._sound:
            try:
                found = self._of(source, acceptance, context, most, ledger, least)
            except Exception as error:
                blame(error, source.name)
            if (promises := sum(found.path)) > promised:
                best, promised = found, promises
            if promised > _PLENTY:
                break
        return best

    def _of(
        self,
        source: Source,
        acceptance: Acceptance,
        context: Context,
        most: int,
        ledger: Ledger | None,
        least: float,
    ) -> Proposed:
        path: Path = []
        tokens, certainty = source.continuation(context, most)[:most], 1.0
        if not tokens or (least > _VAGUE and source.is_vague):
            return NONE_PROPOSED
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
