"""Proposals whose worth shows when the text has gone on.

Every proposal teaches what it would have earned, verified or not.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple, Protocol

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Draft
from edgecs.core.faults import blame
from edgecs.drafters.maxgram import MaxGram
from edgecs.planning.acceptance import LOOKED_AT, Acceptance, Evidence, copied

NEGLIGIBLE = 0.01  # a copy ends where the chance that it is right is below this
_VAGUE = 0.25  # what a copy that only one token speaks for hardly ever reaches
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


class Copier:
    """Max-Gram with the probabilities of what it proposes; nobody without it.

    ends: end-of-generation tokens, nothing follows them.
    """

    def __init__(
        self, mag: MaxGram | None, acceptance: Acceptance, ends: Container[int] = ()
    ) -> None:
        self.mag = mag
        self._acceptance = acceptance
        self._ends = ends
        self._parked = False

    def park(self, name: str) -> None:
        """Proposes nothing more if it is Max-Gram that failed."""
        self._parked = self._parked or (self.mag is not None and self.mag.name == name)

    def propose(
        self,
        context: Context,
        most: int,
        ledger: Ledger | None = None,
        least: float = 0.0,
    ) -> tuple[list[int], Path]:
        """At most `most` tokens and their path probabilities.

        It ends with an end token, or where hardly a chance is left that it is right.
        ledger: where the proposal is noted, to learn from it. least: the chance without
        which its first token cannot pay.
        """
        if self.mag is None or self._parked or most <= 0:
            return [], []
        try:
            return self._copied(self.mag, context, most, ledger, least)
        except Exception as error:
            blame(error, self.mag.name)

    def _copied(
        self,
        mag: MaxGram,
        context: Context,
        most: int,
        ledger: Ledger | None,
        least: float,
    ) -> tuple[list[int], Path]:
        path: Path = []
        tokens, certainty = mag.continuation(context, most)[:most], 1.0
        if not tokens or (least > _VAGUE and mag.is_vague):
            return [], path
        evidence: list[list[int]] = []
        enough = max(least, NEGLIGIBLE)
        looked = mag.evidence(tokens[:LOOKED_AT])
        for token, buckets in zip(tokens, copied(looked, len(tokens)), strict=True):
            certainty *= self._acceptance.odds(buckets)
            path.append(certainty)
            evidence.append(buckets)
            if token in self._ends or certainty < enough:
                break
            enough = max(_LATER * least, NEGLIGIBLE)
        tokens = tokens[: len(path)]
        if ledger is not None:
            ledger.note(context, tokens, evidence, self._acceptance)
        return tokens, path

    def draft(self, tokens: list[int]) -> Draft:
        """Tokens that were proposed, as a draft."""
        if self.mag is None or not tokens:
            return NOTHING
        try:
            return Draft.chain(tokens, self.mag.name)
        except Exception as error:
            blame(error, self.mag.name)

    def sources(self, tokens: list[int]) -> tuple[str, ...]:
        """Who wrote each of them."""
        return (self.mag.name,) * len(tokens) if self.mag else ()
