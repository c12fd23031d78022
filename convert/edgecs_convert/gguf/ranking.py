"""Compares types of one model on this machine: speed and loss of quality."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgecs.audit.fidelity import compare, logits
from edgecs.calibrate.probe import curve
from edgecs.costs.cost_model import CostModel
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import Loaded, load
from edgecs.tuning.quantisations import expected_rates
from edgecs_convert.gguf.types import Variant
from edgecs_convert.text import TEXT

_WIDTHS = (1, 2, 3, 4, 6, 8)
_DEPTH, _REPEATS = 64, 5
_CONTEXT = 1024  # tokens; a byte tokenizer gives more for the text


class Ranked(NamedTuple):
    """A variant on this machine.

    plain, drafted: tokens per second without drafts and with typical proposals of
    Max-Gram. perplexity: of a small text. divergence: mean KL divergence from the
    source on that text, in nats per token; 0: identical.
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
    """The perplexity of the source, and its variants, fastest with drafts first.

    findings: see `load`. Raises ModelError, OutOfMemory, Cancelled.
    """
    tell(f"evaluating a text with {source.name}")
    with _loaded(source, cancel, findings) as loaded:
        text = loaded.model.vocabulary.encode(TEXT)[:_CONTEXT]
        rows = [np.array(piece) for piece in logits(loaded.target, text)]
        own = compare([text], [rows], [rows]).perplexity
    ranked = []
    for variant in variants:
        tell(f"measuring {variant.path.name}")
        with _loaded(variant.path, cancel, findings) as loaded:
            fidelity = compare([text], [logits(loaded.target, text)], [rows])
            costs = CostModel()
            loaded.target.reset()
            costs.measured(_DEPTH, curve(loaded.target, _DEPTH, _WIDTHS, _REPEATS))
            plain, drafted = expected_rates(costs)
        ranked.append(
            Ranked(variant, plain, drafted, fidelity.perplexity, fidelity.divergence)
        )
    return own, sorted(ranked, key=lambda one: -one.drafted)


def _loaded(path: Path, cancel: threading.Event, findings: Path | None) -> Loaded:
    options = LoadOptions(n_ctx=_CONTEXT)
    return load(path, options, cancel=cancel, findings=findings)
