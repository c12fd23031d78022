"""Compares two ways to compute a model by their next-token distributions on texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import Draft, LanguageModel, score_one
from edgecs.errors import ConfigError

PIECE = 32  # tokens of a text in one call

Rows = NDArray[np.float32]


class Fidelity(NamedTuple):
    """One way to compute a model compared with another one.

    tokens: positions that were compared. agreement: share of them with the same best
    token. largest: largest difference of a logit. perplexity, other_perplexity: of the
    texts. divergence: mean Kullback-Leibler divergence from the other one's
    distributions, nats per token.
    """

    tokens: int
    agreement: float
    largest: float
    perplexity: float
    other_perplexity: float
    divergence: float

    @property
    def perplexity_ratio(self) -> float:
        """The perplexity over the other one's."""
        return self.perplexity / self.other_perplexity


def logits(model: LanguageModel, text: Tokens) -> Iterator[Rows]:
    """Logits after every token of a text but the last, [rows, vocabulary] at a time.

    The model is reset first. A text that is longer than the context is truncated. Rows
    are views that are valid until the next ones.
    """
    model.reset()
    text = text[: model.n_ctx]
    context, piece = Context(), min(PIECE, model.max_draft + 1)
    for start in range(1, text.size, piece):
        context.append(text[len(context) : start])
        draft = text[start : min(start + piece, text.size) - 1]
        yield score_one(model, context, Draft.chain(draft, "text")).logits


def log_law(rows: Rows) -> Rows:
    """Log-probabilities of every token, [rows, vocabulary]."""
    shifted = rows - rows.max(axis=1, keepdims=True)
    total = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.asarray(shifted - total, dtype=np.float32)


def divergences(laws: Rows, others: Rows) -> Rows:
    """Kullback-Leibler divergences of distributions from others, nats, [rows]."""
    return np.asarray((np.exp(laws) * (laws - others)).sum(axis=1))


def compare(
    texts: Sequence[Tokens],
    ours: Iterable[Iterable[Rows]],
    others: Iterable[Iterable[Rows]],
) -> Fidelity:
    """Compares the `logits` of texts. Raises ConfigError if none has two tokens."""
    agree, largest, apart = list[bool](), 0.0, list[float]()
    likely, other_likely = list[float](), list[float]()
    for text, pieces, other_pieces in zip(texts, ours, others, strict=True):
        at = 1
        for rows, other in zip(pieces, other_pieces, strict=True):
            said = np.arange(len(rows)), text[at : at + len(rows)]
            at += len(rows)
            agree += (rows.argmax(axis=1) == other.argmax(axis=1)).tolist()
            largest = max(largest, float(np.abs(rows - other).max()))
            law, other_law = log_law(rows), log_law(other)
            likely += law[said].tolist()
            other_likely += other_law[said].tolist()
            apart += divergences(other_law, law).tolist()
    if not agree:
        raise ConfigError("no text has two tokens: give longer ones (--prompts)")
    return Fidelity(
        len(agree),
        float(np.mean(agree)),
        largest,
        float(np.exp(-np.mean(likely))),
        float(np.exp(-np.mean(other_likely))),
        float(np.mean(apart)),
    )
