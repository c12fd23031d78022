"""A drafter that replays recorded proposals and advances a clock."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import (
    Draft,
    OneSequence,
    Request,
    Row,
    Rows,
    Verdict,
    sole_request,
)
from edgecs.decoding.cascade import NamedModel
from edgecs.drafters.recycling import Recycling
from edgecs.planning.worker import Step
from edgecs_bench.hardware.curves import (
    DRAFTER_CURVE,
    DRAFTER_MS,
    READING_MS,
    Steps,
    curve,
)
from edgecs_bench.simulation.traces import Trace

_VOCABULARY = 1 << 20
UNSAID = _VOCABULARY - 1  # a token that no answer contains
_UNKNOWN = (UNSAID, 0.3)  # a choice that was not recorded


class Watch:
    """A clock that advances only when it is told to."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def now(self) -> float:
        """Seconds."""
        return self._seconds

    def pass_by(self, seconds: float) -> None:
        """Advances the clock."""
        self._seconds += seconds


class SimulatedWorker:
    """A worker whose steps take place on the clock, beside the call of the target.

    They are run when the call has ended, from the time when it began.
    """

    def __init__(self, watch: Watch) -> None:
        self.stopping = threading.Event()
        self._watch = watch
        self._step: Step | None = None
        self._began = 0.0

    def start(self, step: Step) -> None:
        """Note the time."""
        self._step, self._began = step, self._watch.now()

    def finish(self) -> None:
        """Run the steps that begin before now; the last one may end later."""
        step, self._step = self._step, None
        ended = self._watch.now()
        self._watch.pass_by(self._began - ended)
        while step and self._watch.now() < ended and step():
            pass
        self._watch.pass_by(max(0.0, ended - self._watch.now()))

    def close(self) -> None:
        """Do nothing: there is no thread."""


class HeardRecycling(Recycling):
    """Token Recycling from the recorded rows along the answer.

    Rows after a wrong token were not recorded, so the real one learns more.
    """

    def hear(self, trace: Trace) -> None:
        """Start the next answer."""
        self._trace = trace

    def observe(
        self, context: Context, draft: Draft, rows: Rows, verdict: Verdict
    ) -> None:
        """Learn the best ids of the rows of the accepted path."""
        trace = self._trace
        first = len(context) - len(trace.prompt)
        end = context.tokens[-2:].tolist()
        for at in range(first, first + len(verdict.path) + 1):
            ids = trace.ranked[at] if trace.ranked else [trace.output[at]]
            self.learn(end, ids)
            end = [end[-1], trace.output[at]]


class Said:
    """The choice from recorded rows: [token, its probability]."""

    def __call__(self, row: Row, tokens: Tokens) -> int:
        """The recorded token."""
        return int(row[0])

    def confidence(self, row: Row, tokens: Tokens, token: int) -> float:
        """The recorded probability; other tokens share the rest."""
        return float(row[1]) if token == int(row[0]) else float(1 - row[1]) / 2

    def alternatives(self, row: Row, tokens: Tokens, k: int) -> list[tuple[int, float]]:
        """The recorded ones, which follow the choice in the row."""
        ids, shares = row[2::2].tolist(), row[3::2].tolist()
        return [(int(i), p) for i, p in zip(ids, shares, strict=True) if i >= 0][:k]

    def margin(self, row: Row, tokens: Tokens) -> float:
        """Infinite, because recorded choices are fixed."""
        return float("inf")

    def keeps(
        self, row: Row, tokens: Tokens, token: int, q: float, lenience: float
    ) -> bool:
        """Never: recorded drafters are not lenient."""
        return False


class Recorded(OneSequence):
    """A drafter's model, defined by a trace.

    Every choice along the answer is known, and after the drafter's first wrong token
    the rest of its proposal. pace: factor on its times.
    """

    TIMES = curve("drafter", DRAFTER_MS, DRAFTER_CURVE, 0.0).times
    vocab_size = _VOCABULARY
    n_ctx = 1 << 30
    max_draft = 31
    max_leaves = 1
    rewindable = True

    def __init__(
        self, name: str, watch: Watch, pace: float = 1.0, steps: Steps | None = None
    ) -> None:
        self.named = NamedModel(name, self)
        self._pace = pace
        self._steps = steps or Steps(self.TIMES, READING_MS)
        self.cancel = threading.Event()
        self._watch = watch
        self._cached = 0

    def hear(self, trace: Trace) -> None:
        """Starts the next answer with an empty cache."""
        self._start = len(trace.prompt)
        self._output = trace.output
        self._said = trace.proposals[self.named.name]
        self._others = max(map(len, self._said.others), default=0)
        self._cached = 0

    def score(self, requests: Sequence[Request]) -> list[Rows]:
        """Returns recorded choices and advances the clock by the time of the call."""
        context, draft, *_ = sole_request(requests)
        tokens = [*context.tokens[self._start :].tolist(), *draft.tokens.tolist()]
        first = len(tokens) - len(draft)
        fed = self._start + len(tokens) - min(self._cached, len(context) - 1)
        self._cached = len(context)
        self._watch.pass_by(self.seconds(fed))
        paths = [tokens[:first]]
        for parent, token in zip(draft.parents.tolist(), draft.tokens, strict=True):
            paths.append([*paths[parent + 1], int(token)])
        logits = np.full((len(paths), 2 + 2 * self._others), -1, dtype=np.float32)
        for row, path in zip(logits, paths, strict=True):
            said = self._choice(path)
            row[: len(said)] = said
        return [Rows(logits, fed)]

    def _choice(self, tokens: list[int]) -> tuple[float, ...]:
        size, output = len(tokens), self._output
        agreed = next(
            (i for i, (a, b) in enumerate(zip(tokens, output, strict=False)) if a != b),
            size,
        )
        if agreed == size < len(output):
            said, p = self._said.tokens[size], self._said.confidences[size]
            return (said[0], p[0], *self._alternatives(size)) if said else _UNKNOWN
        # The first wrong token is at `agreed`, in a draft that began there or before.
        for start in range(agreed, max(-1, agreed - 8), -1):
            said = self._said.tokens[start]
            gone = tokens[start:]
            if len(said) > len(gone) and said[: len(gone)] == gone:
                return said[len(gone)], self._said.confidences[start][len(gone)]
        return _UNKNOWN

    def _alternatives(self, at: int) -> list[float]:
        if not self._said.others:
            return []
        pairs = zip(self._said.others[at], self._said.shares[at], strict=True)
        return [value for pair in pairs for value in pair]

    def seconds(self, fed: int) -> float:
        """The milliseconds of a call over some tokens."""
        times, reading = self._steps
        ms = float(times[fed - 1]) if fed <= times.size else fed * reading
        return self._pace * ms / 1e3

    def end_turn(self, context: Context, sequence: int = 0) -> None:
        """Does nothing: there is no cache."""

    def reset(self) -> None:
        """Does nothing: there is no state."""

    def hold(self, sequence: int = 0) -> AbstractContextManager[None]:
        """Does nothing: the model can be shared."""
        return nullcontext()
