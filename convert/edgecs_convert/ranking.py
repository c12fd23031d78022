"""Types of one model side by side on this machine: speed, and what quality it costs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecs.context import Context, Tokens
from edgecs.costs import CostModel
from edgecs.draft import Draft
from edgecs.load import Loaded, load
from edgecs.options import LoadOptions
from edgecs.probe import curve
from edgecs.tuning.quantisations import promise
from edgecs_convert.gguf_types import Variant
from edgecs_convert.text import TEXT

_WIDTHS = (1, 2, 3, 4, 6, 8)
_DEPTH, _REPEATS = 64, 5
_PIECE = 32  # tokens of the text in one call
_CONTEXT = 1024  # tokens; a tokenizer of bytes has more than that in the text


class Ranked(NamedTuple):
    """A variant on this machine.

    plain, drafted: tokens a second, decoding plainly and with Max-Gram on typical
    proposals. perplexity: of a small text. divergence: from the source's next-token
    laws there, nats a token, the mean; 0: the same.
    """

    variant: Variant
    plain: float
    drafted: float
    perplexity: float
    divergence: float


def rank(
    source: Path,
    variants: Sequence[Variant],
    cancel: threading.Event,
    tell: Callable[[str], None],
    findings: Path | None = None,
) -> tuple[float, list[Ranked]]:
    """The perplexity of the source, and its variants, the fastest with drafts first.

    findings: see `load`. Raises ModelError, OutOfMemory, Cancelled.
    """
    tell(f"reading a text with {source.name}")
    with _loaded(source, cancel, findings) as loaded:
        tokens = loaded.model.vocabulary.encode(TEXT)[: _CONTEXT - _PIECE]
        laws = [_log_law(rows) for rows in _rows(loaded, tokens)]
        own = _perplexity(laws, tokens)
    ranked = []
    for variant in variants:
        tell(f"measuring {variant.path.name}")
        with _loaded(variant.path, cancel, findings) as loaded:
            there = [_log_law(rows) for rows in _rows(loaded, tokens)]
            costs = CostModel()
            loaded.target.reset()
            costs.measured(_DEPTH, curve(loaded.target, _DEPTH, _WIDTHS, _REPEATS))
            plain, drafted = promise(costs)
            divergence = float(np.mean([*_divergences(laws, there)]))
            perplexity = _perplexity(there, tokens)
        ranked.append(Ranked(variant, plain, drafted, perplexity, divergence))
    return own, sorted(ranked, key=lambda one: -one.drafted)


def _loaded(path: Path, cancel: threading.Event, findings: Path | None) -> Loaded:
    options = LoadOptions(n_ctx=_CONTEXT)
    return load(path, options, cancel=cancel, findings=findings)


def _rows(loaded: Loaded, tokens: Tokens) -> Iterator[NDArray[np.float32]]:
    """Logits behind every token of a text but the last, piece by piece."""
    context = Context()
    for start in range(1, tokens.size, _PIECE):
        piece = tokens[start : min(start + _PIECE, tokens.size) - 1]
        context.append(tokens[len(context) : start])
        yield loaded.target.score(context, Draft.chain(piece, "text")).logits


def _log_law(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = rows - rows.max(axis=1, keepdims=True)
    total = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.asarray(shifted - total, dtype=np.float32)


def _perplexity(laws: Sequence[NDArray[np.float32]], tokens: Tokens) -> float:
    said = np.concatenate(
        [
            law[np.arange(law.shape[0]), tokens[1 + i * _PIECE :][: law.shape[0]]]
            for i, law in enumerate(laws)
        ]
    )
    return float(np.exp(-said.mean()))


def _divergences(
    ours: Sequence[NDArray[np.float32]], theirs: Sequence[NDArray[np.float32]]
) -> Iterator[float]:
    for one, other in zip(ours, theirs, strict=True):
        yield from (np.exp(one) * (one - other)).sum(axis=1).tolist()
