"""How each token of an answer came about: its round, its probability, its rival."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgecs.core.draft import Row
from edgecs.decoding.cascade import Round


class Rejected(NamedTuple):
    """A drafted token that the target did not choose."""

    id: int
    source: str  # its drafter
    p: float  # probability by the target's unmodified row


class Detail(NamedTuple):
    """The round that emitted a token.

    rejected: what was drafted in its place; None: nothing, or the token itself. ends:
    why the answer ends with this token (`FinishReason`); None: it does not.
    """

    p: float  # probability by the target's unmodified row
    round: int  # 0: the call that read the prompt
    width: int  # tokens in the call: the last known one and the draft
    rejected: Rejected | None = None
    ends: str | None = None


def details_of(done: Round, number: int) -> list[Detail]:
    """The details of the tokens of a round.

    It is called before the target's next call, which changes the rows.
    """
    rows, width, nodes = done.rows.logits, 1 + len(done.draft), (-1, *done.verdict.path)
    details = []
    for node, token in zip(nodes, done.tokens, strict=True):
        details.append(Detail(_probability(rows[node + 1], token), number, width))
    if (rival := done.rejected) is not None:
        token = int(done.draft.tokens[rival])
        p = _probability(rows[nodes[-1] + 1], token)
        rejected = Rejected(token, done.draft.sources[rival], p)
        details[-1] = details[-1]._replace(rejected=rejected)
    return details


def _probability(row: Row, token: int) -> float:
    # In float32: with 150,000 logits, float64 would take a noticeable part of a round.
    weights = np.exp(row - row.max())
    return float(weights[token] / weights.sum())
