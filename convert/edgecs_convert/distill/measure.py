"""What a head is worth: how often it is right, how long it takes, what it buys.

Measured on the exported graph in ONNX Runtime, on answers that it was not trained on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from edgecs.backends.onnx_head import OnnxHead
from edgecs.context import Context
from edgecs.draft import NOTHING
from edgecs.errors import Cancelled
from edgecs.states import States
from edgecs_convert.distill.samples import Sample


class Worth(NamedTuple):
    """shares: how often the first, the first two, ... tokens of a draft are right.

    seconds: a drafted token takes, the median. drafts: that were looked at.
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
    """Drafts of `most` tokens against what the target said greedily. Raises Cancelled.

    Drafts begin behind every token of an answer, until there are enough of them.
    """
    right, seen = np.zeros(most), 0
    took: list[float] = []
    states: States | None = None
    head: OnnxHead | None = None
    try:
        for sample in samples:
            if sample.temperature or sample.size <= most:
                continue
            if head is None:
                states = States(sample.states.shape[1])
                head = OnnxHead(folder, states, vocab_size, cancel, threads=threads)
            assert states is not None
            for hits in _drafts(head, states, sample, most, took):
                if cancel.is_set():
                    raise Cancelled("stopped while measuring the drafter")
                right[:hits] += 1
                seen += 1
            if seen >= drafts:
                break
    finally:
        if head is not None:
            head.close()
    shares = (right / max(1, seen)).tolist()
    return Worth(shares, median(took) if took else 0.0, seen)


def _drafts(
    head: OnnxHead, states: States, sample: Sample, most: int, took: list[float]
) -> Iterable[int]:
    """How many tokens of each draft are right, behind every token of an answer."""
    said = sample.tokens.tolist()
    context = Context(sample.tokens[: sample.start + 1])
    head.reset()
    for at in range(sample.start + 1, len(said) - most):
        tail: list[int] = []
        hits = 0
        for i in range(most):
            began = time.perf_counter()
            row = head.score(context.with_tail(tail) if tail else context, NOTHING)
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
