"""Stores the answers of a session as samples for training a drafter later.

Verification already computes the data for training: the best logits and the hidden
states (Online Speculative Decoding, arXiv 2310.07177, trains on rejected tokens; a head
needs the states of the other tokens too). Nothing leaves this machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Context
from edgecs.decoding.cascade import Round
from edgecs.engines.hidden_states import States
from edgecs.session.session import Session
from edgecs.session.stats import Stats
from edgecs_convert.distill.samples import KEPT, Sample, best, write_shard

_TOGETHER = 16  # answers in a file


class AnswerLog:
    """Stores the answers of a session in a folder of samples; call `close`.

    states: the recorded hidden states of the session's target. Raises DistillError if a
    file cannot be written.
    """

    def __init__(
        self, session: Session, states: States, folder: Path, temperature: float
    ) -> None:
        self._session, self._states = session, states
        self._folder, self._temperature = folder, temperature
        self._done: list[Sample] = []
        self._begin(None)
        self._before, session.on_round = session.on_round, self._note

    def close(self) -> None:
        """Writes the remaining answers."""
        self._end()
        if self._done:
            write_shard(self._folder, self._done)
            self._done = []

    def _begin(self, stats: Stats | None) -> None:
        self._stats = stats  # of the current answer
        self._first: NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._tokens: list[int] = []
        self._ids: list[NDArray[np.int32]] = []
        self._logits: list[NDArray[np.float16]] = []
        self._kept: list[NDArray[np.float16]] = []

    def _note(self, context: Context, done: Round) -> None:
        """Called with every round except the first one, before it is committed."""
        if self._session.stats is not self._stats:
            self._end()
            self._begin(self._session.stats)
            self._first = context.tokens.copy()  # the prompt and the first token
        nodes = [0, *(node + 1 for node in done.verdict.path)]
        ids, logits = best(np.asarray(done.rows.logits[nodes]), KEPT)
        cell = len(context) - 1
        states = self._states.of(context, cell, cell + len(nodes))
        self._tokens += done.tokens
        self._ids += [*ids]
        self._logits += [*logits.astype(np.float16)]
        self._kept += [*states.astype(np.float16)]
        if self._before:
            self._before(context, done)

    def _end(self) -> None:
        """The current answer as a sample."""
        if self._stats is None or not self._tokens:
            return
        size = self._stats.tokens - 1  # a round may have more tokens than the answer
        tokens = np.array(self._tokens[:size], dtype=np.int32)
        self._done.append(
            Sample(
                time.time_ns(),
                self._temperature,
                np.concatenate([self._first, tokens]),
                self._first.size - 1,
                _with_first(int(self._first[-1]), self._ids[: tokens.size]),
                _with_first(0, self._logits[: tokens.size]),
                np.stack(self._kept[: tokens.size]),
            )
        )
        self._begin(None)
        if len(self._done) >= _TOGETHER:
            write_shard(self._folder, self._done)
            self._done = []


def _with_first(value: int, rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Rows, preceded by an empty one for the first token."""
    first = np.full_like(rows[0], value)
    return np.stack([first, *rows])
