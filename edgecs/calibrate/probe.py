"""Measure a model on scratch KV cells: call times and bit-exact widths.

The context consists of ids from a fixed pseudo-random sequence. Where the engine allows
it, its KV cells are copies of a few real ones, so a probe at any depth costs no more
than its own calls. The KV cache is empty afterwards.
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
# chosen: every width that most drafts need, then steps of at most a half.
FULL = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32)  # widths that `edgecs tune` compares
# chosen: some cells to attend to, and room for calls in tiny contexts.
_SHALLOW = 24  # depth of the shallowest calls
_AHEAD = 1  # distance to a border at which all calls of two or more tokens cross it
_NOTHING = Finding(frozenset(), frozenset())


class Measurable(LanguageModel, Protocol):
    """A model whose KV cells can be filled without computing them."""

    def pretend(self, context: Context) -> bool:
        """Fill the KV cells of a context with copies of a few computed ones.

        Returns False where the engine does not allow it; the cache is empty then.
        """


class Timed(NamedTuple):
    """One call, as `CostModel.observe` takes it."""

    width: int  # tokens in it
    depth: int  # KV cells before it
    seconds: float
    after: int  # calls of one token since a wider one


def scratch(vocab_size: int, size: int) -> Tokens:
    """Ids of a fixed pseudo-random sequence, int32 [size]."""
    random = np.random.default_rng(0)
    # A drafter may lack the last rows of its target's vocabulary, which are padding.
    return random.integers(0, max(1, vocab_size // 2), size, dtype=np.int32)


class Scratch:
    """A model with `depth` scratch KV cells, whose calls are timed.

    >>> from edgecs.testing.fakes import TableModel
    >>> with Scratch(TableModel(50), 10) as cells:
    ...     cells.rows(0, 3).shape
    (3, 50)
    """

    def __init__(self, model: LanguageModel, depth: int) -> None:
        self.timed: list[Timed] = []
        self._model = model
        tokens = scratch(model.vocab_size, depth + 2 * WIDEST + 1)
        # One context for all calls: cells of another context are not all reused.
        self._context, self._more = Context(tokens[:depth]), tokens[depth:]
        self.singles = 0  # calls of one token since a wider one
        self.others = 0  # calls that did not compute just their own tokens

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

        after: tokens between the scratch cells and the call. Raises NoNumbers if the
        best logit of a row is not finite.
        """
        if self._model.cancel.is_set():
            raise Cancelled("stopped while measuring the model")
        context = self._context.with_tail(self._more[: after + 1])
        draft = Draft.chain(self._more[after + 1 : after + width], "scratch")
        if rewind := getattr(self._model, "rewind", None):
            rewind(context)
        began = time.perf_counter()
        done = score_one(self._model, context, draft if width > 1 else NOTHING)
        seconds = time.perf_counter() - began
        self.others += done.fed != width
        self.timed.append(Timed(width, len(context) - 1, seconds, self.singles))
        self.singles = self.singles + 1 if width == 1 else 0
        _check(done.logits)
        return done.logits


def curve(
    model: LanguageModel, depth: int, widths: Iterable[int], repeats: int
) -> dict[int, float]:
    """Median seconds of calls by width at a depth, with the widths interleaved.

    Calls of one token are timed after settling. Widths that do not fit the model's
    limits or its context are left out.
    """
    room = min(model.max_draft + 1, model.n_ctx - depth - 1)
    order = [n for n in widths if n <= room]
    if not order:
        return {}
    with Scratch(model, depth) as cells:
        cells.rows(0, 1)  # warm-up: the first call on new cells is slower
        cells.timed.clear()
        for i in range(repeats):
            for n in order if i % 2 else reversed(order):
                while n == 1 and cells.singles < SETTLED:
                    cells.rows(0, 1)
                cells.rows(0, n)
        settled = [t for t in cells.timed if t.width > 1 or t.after >= SETTLED]
        return {n: median(t.seconds for t in settled if t.width == n) for n in order}


def settling(model: LanguageModel, depth: int, width: int, repeats: int) -> float:
    """Extra seconds of the calls of one token after a call of `width` tokens.

    Computed from medians at a depth, see `CostModel.settling`; 0 if there is no room.
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
    """Compare calls of every width bit for bit with calls of one token.

    Every call but the first follows a removal of cells. An engine that recomputes cells
    instead of removing some has no exact widths, as the comparison is meaningless.
    until: `perf_counter` value after which no further width is started.
    """
    alone: list[NDArray[np.float32]] = []
    same, other = set[int](), set[int]()
    dirty = False  # whether the cells are those of a call with different bits
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
    """Raise NoNumbers if the best logit of a row is not finite."""
    best = rows.max(axis=1)  # a NaN, if there is one
    bad = best[~np.isfinite(best)]
    if bad.size:
        raise NoNumbers(float(bad[0]))


def points(n_ctx: int) -> list[tuple[int, int]]:
    """Depths to probe, as (depth, start of the range), shallow first.

    Each range has one point inside, across a multiple of 256 where there is one, and
    one across the border to the next range, as far as there is room for the calls.

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
    """Probe the widths and ranges missing in `classes`, as far as time allows.

    Where no width was exact, only two widths are probed deeper. costs: updated from the
    shallow calls. deepest: greatest depth to probe.
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
            # Deeper calls take longer, and the time that depth adds is not known yet.
            for call in timed if costs and depth < FIRST_BORDER - _AHEAD else ():
                assert costs is not None
                costs.observe(*call)
            if found.same or found.other:
                classes.add(depth, depth + missing[-1] - 1, found)
                known = known.both(found)
        if known.other and not known.same:
            worth &= {min(worth, default=0), 4}
