"""Proposals awaiting confirmation by later tokens.

Acceptances learn from every proposal, whether it was verified or not.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from edgecs.core.context import Context
from edgecs.drafters.source import LOOKED_AT
from edgecs.planning.acceptance import Evidence


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
