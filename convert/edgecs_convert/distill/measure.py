"""Measures a drafter: acceptance, time per token, expected speed-up.

It uses the exported graph in ONNX Runtime, and answers that are not training data.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from edgecs.core.context import Context
from edgecs.core.draft import score_one
from edgecs.engines.hidden_states import States
from edgecs.engines.onnx.decoder import OnnxModel
from edgecs.engines.onnx.head import OnnxHead
from edgecs.errors import Cancelled
from edgecs.hub.drafter_manifest import read_drafter
from edgecs_convert.distill.samples import Sample


class Worth(NamedTuple):
    """shares: how often the first, the first two, ... tokens of a draft are right.

    seconds: median time of a drafted token. drafts: the number of measured drafts.
    """

    shares: list[float]
    seconds: float
    drafts: int


def worth(
    folder: Path,
    samples: Iterable[Sample],
    vocab_size: int,
    cancel: threading.Event,
    *,
    most: int = 3,
    drafts: int = 20_000,
    threads: int = 1,
) -> Worth:
    """Compares drafts of `most` tokens with greedy answers. Raises Cancelled.

    Drafts start after every token of an answer, until there are enough drafts.
    """
    greedy = [s for s in samples if not s.temperature and s.size > most]
    if not greedy:
        return Worth([0.0] * most, 0.0, 0)
    right, seen = np.zeros(most), 0
    took: list[float] = []
    states = States(greedy[0].states.shape[1])
    model = _open(folder, states, vocab_size, cancel, threads)
    try:
        for sample in greedy:
            for hits in _drafts(model, states, sample, most, took):
                if cancel.is_set():
                    raise Cancelled("stopped while measuring the drafter")
                right[:hits] += 1
                seen += 1
            if seen >= drafts:
                break
    finally:
        model.close()
    return Worth((right / max(1, seen)).tolist(), median(took or [0.0]), seen)


def _open(
    folder: Path,
    states: States,
    vocab_size: int,
    cancel: threading.Event,
    threads: int,
) -> OnnxHead | OnnxModel:
    """The drafter in a folder, of either kind."""
    if read_drafter(folder).kind == "head":
        return OnnxHead(folder, states, vocab_size, cancel, threads=threads)
    return OnnxModel(folder, vocab_size, cancel, threads=threads)


def _drafts(
    model: OnnxHead | OnnxModel,
    states: States,
    sample: Sample,
    most: int,
    took: list[float],
) -> Iterable[int]:
    """The number of right tokens of each draft, after every token of an answer."""
    said = sample.tokens.tolist()
    context = Context(sample.tokens[: sample.start + 1])
    model.reset()
    for at in range(sample.start + 1, len(said) - most):
        tail: list[int] = []
        hits = 0
        for i in range(most):
            began = time.perf_counter()
            row = score_one(model, context.with_tail(tail) if tail else context)
            token = int(row.logits[0].argmax())
            took.append(time.perf_counter() - began)
            tail.append(token)
            if token != said[at + i]:
                break
            hits += 1
        yield hits
        state = sample.states[at - 1 - sample.start]
        states.put(context, at - 1, state[None].astype(np.float32))
        context.append(said[at : at + 1])
