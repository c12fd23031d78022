"""Measuring a model on scratch cells: what a call costs, and whether its bits hold.

The context is made of ids from a fixed pseudo-random sequence, and its cells are copies
where the engine allows it, so a probe at any depth costs no more than its own calls.
The model is empty afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import NOTHING, Draft, LanguageModel, score_one
from edgecs.costs.cost_model import SETTLED, WIDEST, CostModel
from edgecs.decoding.exactness import FIRST_BORDER, Classes, Finding, range_of
from edgecs.errors import Cancelled, NoNumbers

# chosen: those that most drafts need, as far as the time at load allows.
QUICK = (2, 3, 4, 6, 8)  # widths that are probed at load
# chosen: every width that most drafts need, then steps of a half at most.
FULL = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32)  # widths that `edgecs tune` compares
# chosen: some cells to attend to, and room for calls in tiny contexts.
_SHALLOW = 24  # cells before the first calls
_AHEAD = 1  # cells before a border where all calls of two tokens or more cross it
_NOTHING = Finding(frozenset(), frozenset())


class Measurable(LanguageModel, Protocol):
    """A model whose cells can be filled without computing them."""

    def pretend(self, context: Context) -> bool:
        """Fills the cells of a context with something, copies of a few real ones.

        False where the engine does not allow it; the model is empty then.
        """


class Timed(NamedTuple):
    """One call, as `CostModel.observe` takes it."""

    width: int  # tokens in it
    depth: int  # cells before it
    seconds: float
    after: int  # calls of one token since a wider one


def scratch(vocab_size: int, size: int) -> Tokens:
    """Ids of a fixed pseudo-random sequence, int32 [size]."""
    random = np.random.default_rng(0)
    # A drafter's vocabulary may lack the last rows of its target's, which are padding.
    return random.integers(0, max(1, vocab_size // 2), size, dtype=np.int32)


class Scratch:
    """A model with `depth` scratch cells in it, whose calls are timed.

    >>> from edgecs.testing.fakes import TableModel
    >>> with Scratch(TableModel(50), 10) as cells:
    ...     cells.rows(0, 3).shape
    (3, 50)
    """

    def __init__(self, model: LanguageModel, depth: int) -> None:
        self.timed: list[Timed] = []
        self._model = model
        tokens = scratch(model.vocab_size, depth + 2 * WIDEST + 1)
        # One context for all calls: cells that another one left are not all reused.
        self._context, self._more = Context(tokens[:depth]), tokens[depth:]
        self.singles = 0  # calls of one token since a wider one
        self.others = 0  # calls that computed more than their own tokens

    def __enter__(self) -> Scratch:
        pretend = getattr(self._model, "pretend", None)
        try:
            if pretend is None or not pretend(self._context):
                score_one(self._model, self._context)
        except BaseException:
            self._model.reset()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._model.reset()

    def rows(self, after: int, width: int) -> NDArray[np.float32]:
        """Logits of a call of `width` tokens, [width, vocabulary], a view.

        after: tokens between the scratch cells and the call. Raises NoNumbers for a
        model that computes none.
        """
        if self._model.cancel.is_set():
            raise Cancelled("stopped while measuring the model")
        context = self._context.with_tail(self._more[: after + 1])
        draft = Draft.chain(self._more[after + 1 : after + width], "scratch")
        began = time.perf_counter()
        rows, fed, _ = score_one(self._model, context, draft if width > 1 else NOTHING)
        seconds = time.perf_counter() - began
        self.others += fed != width
        self.timed.append(Timed(width, len(context) - 1, seconds, self.singles))
        self.singles = self.singles + 1 if width == 1 else 0
        _check(rows)
        return rows


def curve(
    model: LanguageModel, depth: int, widths: Iterable[int], repeats: int
) -> dict[int, float]:
    """Median seconds of calls by width at a depth, the widths taken in turn.

    Calls of one token are timed when they have settled. Widths that the model or its
    context has no room for are left out.
    """
    room = min(model.max_draft + 1, model.n_ctx - depth - 1)
    order = [n for n in widths if n <= room]
    if not order:
        return {}
    with Scratch(model, depth) as cells:
        cells.rows(0, 1)  # the first call on new cells pays for more than itself
        cells.timed.clear()
        for i in range(repeats):
            for n in order if i % 2 else reversed(order):
                while n == 1 and cells.singles < SETTLED:
                    cells.rows(0, 1)
                cells.rows(0, n)
        settled = [t for t in cells.timed if t.width > 1 or t.after >= SETTLED]
        return {n: median(t.seconds for t in settled if t.width == n) for n in order}


def settling(model: LanguageModel, depth: int, width: int, repeats: int) -> float:
    """Seconds by which a call of `width` tokens slows down the calls of one after it.

    Medians at a depth, see `CostModel.settling`; 0 where there is no room.
    """
    if width > min(model.max_draft + 1, model.n_ctx - depth - 1):
        return 0.0
    with Scratch(model, depth) as cells:
        for _ in range(repeats):
            cells.rows(0, width)
            for _ in range(2 * SETTLED):
                cells.rows(0, 1)
        singles = [t for t in cells.timed if t.width == 1]
        usual = median(t.seconds for t in singles if t.after >= SETTLED)
        slow = (
            median(t.seconds for t in singles if t.after == after) - usual
            for after in range(SETTLED)
        )
        return max(0.0, sum(slow))


def bits(
    model: LanguageModel,
    depth: int,
    widths: Sequence[int],
    *,
    until: float = float("inf"),
) -> tuple[Finding, list[Timed]]:
    """Compares calls of every width with the same tokens one by one, bit for bit.

    Every call but the first follows a removal of cells. An engine that computes cells
    again instead of removing some has no exact widths: nobody knows what it compared.
    until: `perf_counter` value after which no further width is begun.
    """
    alone: list[NDArray[np.float32]] = []
    same, other = set[int](), set[int]()
    dirty = False  # whether the cells are those of a call that gave other bits
    with Scratch(model, depth) as cells:
        for width in sorted(widths):
            if width > model.max_draft + 1 or time.perf_counter() > until:
                continue
            for i in range(0 if dirty else len(alone), width):
                alone[i : i + 1] = [cells.rows(i, 1)[0].copy()]
            together = cells.rows(0, width)
            dirty = not np.array_equal(together, alone[:width])
            (other if dirty else same).add(width)
        if cells.others:
            same, other = set(), same | other
        return Finding(frozenset(same), frozenset(other)), cells.timed


def _check(rows: NDArray[np.float32]) -> None:
    """Raises NoNumbers where the best logit of a row is not a number."""
    best = rows.max(axis=1)  # a NaN, if there is one
    bad = best[~np.isfinite(best)]
    if bad.size:
        raise NoNumbers(float(bad[0]))


def points(n_ctx: int) -> list[tuple[int, int]]:
    """Where to probe: (depth, start of the range), shallow first.

    In every range once inside, across a multiple of 256 where there is one, and once
    across the border to the next, as far as there is room for the calls.

    >>> points(600)
    [(24, 0), (255, 0), (384, 256), (511, 256), (566, 512)]
    """
    found, start, last = [], 0, n_ctx - WIDEST - 2
    while max(1, start) <= last:
        _, end = range_of(start)
        across = start + FIRST_BORDER - _AHEAD
        inside = across if across + FIRST_BORDER <= end else (start + end) // 2
        found.append((min(inside if start else _SHALLOW, last), start))
        found.append((end - _AHEAD, start))
        start = end
    return [(depth, start) for depth, start in found if depth <= last]


def classify(
    model: LanguageModel,
    classes: Classes,
    widths: Sequence[int],
    costs: CostModel | None = None,
    *,
    until: float = float("inf"),
    deepest: int | None = None,
    progress: Callable[[int], None] = lambda depth: None,
) -> None:
    """Probes what `classes` does not know yet, as far as time allows.

    Where no width passed, only two are asked about deeper. costs: learns from the
    shallow calls. deepest: probe no deeper.
    """
    worth = {n for n in widths if n <= model.max_draft + 1}
    for depth, start in points(min(model.n_ctx, deepest or model.n_ctx)):
        _, end = range_of(start)
        crosses = depth == end - _AHEAD
        known = classes.crossing.get(end) if crosses else classes.inside.get(start)
        known = known or _NOTHING
        if missing := sorted(worth - known.same - known.other):
            if time.perf_counter() > until:
                break
            progress(depth)
            found, timed = bits(model, depth, missing, until=until)
            # Deeper calls take longer, and what depth adds is not known yet.
            for call in timed if costs and depth < FIRST_BORDER - _AHEAD else ():
                assert costs is not None
                costs.observe(*call)
            if found.same or found.other:
                classes.add(depth, depth + missing[-1] - 1, found)
                known = known.both(found)
        if known.other and not known.same:
            worth &= {min(worth, default=0), 4}
