"""Proposals awaiting confirmation by later tokens.

Acceptances learn from every proposal, whether it was verified or not.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import NamedTuple, Protocol

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Draft
from edgecs.core.faults import blame
from edgecs.drafters.source import LOOKED_AT, Source
from edgecs.planning.acceptance import Acceptance, Calibration, Evidence

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


class Learner(Protocol):
    """Receiver of the outcome of a proposal."""

    def learn(self, evidence: Evidence, right: int, decided: bool) -> None:
        """See `Acceptance.learn`."""


class _Proposal(NamedTuple):
    start: int  # number of tokens before it
    tokens: list[int]
    evidence: Evidence
    learner: Learner


class Ledger:
    """Proposals that the committed text has not confirmed or contradicted yet."""

    def __init__(self) -> None:
        self._waiting: list[_Proposal] = []  # the earliest start first
        self._root: Context | None = None
        self._shown = 0  # committed tokens at the last `settle`

    def note(
        self, context: Context, tokens: list[int], evidence: Evidence, learner: Learner
    ) -> None:
        """Record a proposal for a context, at most LOOKED_AT tokens of it."""
        few = tokens[:LOOKED_AT]
        known = evidence[: len(few)]
        self._waiting.append(_Proposal(len(context), few, known, learner))

    def settle(self, context: Context) -> None:
        """Report the outcome of every proposal that the text has decided."""
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
        """End the answer: tokens that follow were not chosen by the target.

        Waiting proposals are reported with what the last `settle` had confirmed.
        """
        for proposal in self._waiting:
            right = max(0, self._shown - proposal.start)
            proposal.learner.learn(proposal.evidence, right, False)
        self._waiting = []


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


class Sources:
    """Model-free drafters and their acceptance probabilities.

    sources: ordered by usual quality, the best first. The others are asked where the
    first proposes few expected tokens; the proposal with the most expected tokens is
    used, and acceptances learn from all of them. ends: end-of-generation tokens, after
    which a proposal stops.
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
        """Stop using a source that failed."""
        self._sound = [pair for pair in self._sound if pair[0].name != name]

    def propose(
        self,
        context: Context,
        most: int,
        ledger: Ledger | None = None,
        least: float = 0.0,
    ) -> Proposed:
        """At most `most` tokens of one source, with their path probabilities.

        The proposal stops after an end token, or where its path probability becomes
        negligible. ledger: records the proposals to learn from them. least: probability
        below which a first token cannot pay.
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
