"""Measures a drafter: acceptance, time per token, expected speed-up.

It uses the exported file in the engine that will run it, and answers that are not
training data.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from edgecs.core.context import Context
from edgecs.core.draft import LanguageModel, score_one
from edgecs.engines.hidden_states import States
from edgecs.engines.load_options import LoadOptions
from edgecs.engines.onnx.decoder import OnnxModel
from edgecs.engines.onnx.head import OnnxHead
from edgecs.engines.state_head import StateHead
from edgecs.errors import Cancelled
from edgecs.hub.drafter_manifest import read_drafter
from edgecs.runtime.heads import load_head
from edgecs.runtime.loader import Loaded
from edgecs_convert.distill.samples import Sample

MOST, DRAFTS = 3, 20_000  # tokens of a measured draft; measured drafts


class Worth(NamedTuple):
    """shares: how often the first, the first two, ... tokens of a draft are right.

    seconds: median time of a drafted token. drafts: the number of measured drafts.
    """

    shares: list[float]
    seconds: float
    drafts: int


class Counts(NamedTuple):
    """right: drafts whose first, first two, ... tokens are right. drafts: all of them.

    took: seconds of their tokens.
    """

    right: tuple[int, ...]
    drafts: int
    took: list[float]

    @staticmethod
    def none() -> Counts:
        """No drafts."""
        return Counts((0,) * MOST, 0, [])

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        right = (a + b for a, b in zip(self.right, other.right, strict=True))
        took = self.took + other.took
        return Counts((*right,), self.drafts + other.drafts, took)

    def summed_up(self) -> Worth:
        """As shares and a median."""
        shares = [count / max(1, self.drafts) for count in self.right]
        return Worth(shares, median(self.took or [0.0]), self.drafts)


class Opened(NamedTuple):
    """A drafter, and the states that it reads, which `worth` fills in."""

    drafter: LanguageModel
    states: States


def worth(opened: Opened, samples: Iterable[Sample], cancel: threading.Event) -> Worth:
    """Compares drafts with greedy answers. Raises Cancelled.

    Drafts start after every token of an answer, until there are enough drafts.
    """
    return counts(opened, measured_samples(samples), cancel).summed_up()


def measured_samples(samples: Iterable[Sample], drafts: int = DRAFTS) -> list[Sample]:
    """The first greedy answers after whose tokens so many drafts can start."""
    found, seen = list[Sample](), 0
    for sample in samples:
        if seen >= drafts:
            break
        if not sample.temperature and sample.size > MOST:
            found.append(sample)
            seen += sample.size - 1 - MOST
    return found


def counts(
    opened: Opened, samples: Iterable[Sample], cancel: threading.Event
) -> Counts:
    """Counts right drafts after every token of greedy answers. Raises Cancelled."""
    right, seen = np.zeros(MOST, dtype=np.int64), 0
    took: list[float] = []
    for sample in samples:
        for hits in _drafts(opened, sample, MOST, took):
            if cancel.is_set():
                raise Cancelled("stopped while measuring the drafter")
            right[:hits] += 1
            seen += 1
    return Counts((*right.tolist(),), seen, took)


@contextmanager
def opened_onnx(
    folder: Path, width: int, vocab_size: int, cancel: threading.Event
) -> Iterator[Opened]:
    """The drafter in a folder, for a target with states of this width."""
    states = States(width)
    drafter: OnnxHead | OnnxModel
    if read_drafter(folder).kind == "head":
        drafter = OnnxHead(folder, states, vocab_size, cancel, threads=1)
    else:
        drafter = OnnxModel(folder, vocab_size, cancel, threads=1)
    with closing(drafter):
        yield Opened(drafter, states)


@contextmanager
def opened_eagle(path: Path, loaded: Loaded) -> Iterator[Opened]:
    """The EAGLE-3 drafter in a file; the target gives embeddings and is not run."""
    options = LoadOptions(threads=loaded.target.threads)
    made = load_head("eagle3", path, loaded, options)
    try:
        assert isinstance(made.model, StateHead)
        yield Opened(made.model, made.model.states)
    finally:
        made.close()


def _drafts(
    opened: Opened, sample: Sample, most: int, took: list[float]
) -> Iterable[int]:
    """The number of right tokens of each draft, after every token of an answer."""
    model, states = opened
    said = sample.tokens.tolist()
    context = Context(sample.tokens[: sample.start + 1])
    model.reset()
    before = sample.start - sample.stated
    if before:
        states.put(context, sample.stated, sample.states[:before].astype(np.float32))
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
        state = sample.states[at - 1 - sample.stated]
        states.put(context, at - 1, state[None].astype(np.float32))
        context.append(said[at : at + 1])
