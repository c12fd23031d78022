"""A target and a small model that read the same tokens, as one language model.

A rule that mixes their laws needs the rows of both at every position, that after the
last drafted token included. The small model has computed most of them while it drafted.
Those are kept, and one call computes the rest: one token after a draft of its own, and
the tokens that cheaper drafters wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import (
    Draft,
    LanguageModel,
    OneSequence,
    Request,
    Row,
    Rows,
    sole_request,
)


class RowKeeper(OneSequence):
    """A drafter's model that keeps the rows of the current round.

    It has the first sequence of the model. held: whether a `Beside` claims the model.
    """

    max_leaves = 1

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.vocab_size = model.vocab_size
        self.n_ctx = model.n_ctx
        self.max_draft = model.max_draft
        self.rewindable = model.rewindable
        self.cancel = model.cancel
        self.held = False
        self._kept: dict[bytes, Row] = {}  # by all tokens before

    def score(self, requests: Sequence[Request]) -> list[Rows]:
        """The rows of the model, of which copies are kept."""
        request = sole_request(requests)
        (rows,) = self.model.score([request])
        draft = request.draft.tokens
        for i, row in enumerate(rows.logits):
            self._kept[_name(request.context, draft[:i])] = row.copy()
        return [rows]

    def rows(self, request: Request) -> NDArray[np.float32]:
        """Rows after the context and each token of a chain, [1 + n, vocabulary].

        What is not kept is computed in one call.
        """
        context, draft = request.context, request.draft
        names = [_name(context, draft.tokens[:i]) for i in range(1 + len(draft))]
        known = next((i for i, n in enumerate(names) if n not in self._kept), None)
        if known is not None:
            here = context.with_tail(draft.tokens[:known]) if known else context
            rest = Draft.chain(draft.tokens[known:], draft.sources[known:])
            self.score([Request(here, rest, 0, request.cancel)])
        return np.stack([self._kept[name] for name in names])

    def row(self, tokens: Tokens) -> Row:
        """A kept row, by all tokens before it."""
        return self._kept[tokens.tobytes()]

    def begin(self, start: int, sequence: int = 0) -> None:
        """See `excerpt_reader.ExcerptReader`."""
        if begin := getattr(self.model, "begin", None):
            begin(start)

    def reads(self, context: Context, sequence: int = 0) -> int | None:
        """See `excerpt_reader.ExcerptReader`."""
        reads = getattr(self.model, "reads", None)
        return reads(context) if reads else None

    def forget_rows(self) -> None:
        """Drops the rows: the round is over."""
        self._kept.clear()

    def end_turn(self, context: Context, sequence: int = 0) -> None:
        """See `LanguageModel`."""
        self.forget_rows()
        self.model.end_turn(context)

    def reset(self) -> None:
        """See `LanguageModel`."""
        self.forget_rows()
        self.model.reset()

    def hold(self, sequence: int = 0) -> AbstractContextManager[None]:
        """Claims the model, unless a `Beside` does."""
        return nullcontext() if self.held else self.model.hold()


class Beside(OneSequence):
    """A target whose rows come with those of a small model (`Rows.beside`).

    small: also the model of the drafter in the target's cascade, so that its rows are
    not computed twice. Drafts are chains.
    """

    max_leaves = 1

    def __init__(self, target: LanguageModel, small: RowKeeper) -> None:
        self.target, self.small = target, small
        small.held = True
        self.vocab_size = target.vocab_size
        self.n_ctx = min(target.n_ctx, small.n_ctx)
        self.max_draft = min(target.max_draft, small.max_draft)
        self.rewindable = target.rewindable and small.rewindable
        self.cancel = target.cancel

    def score(self, requests: Sequence[Request]) -> list[Rows]:
        """The rows of both models; `fed` counts those of the target."""
        request = sole_request(requests)
        beside = self.small.rows(request)
        self.small.forget_rows()
        (rows,) = self.target.score([request])
        return [rows._replace(beside=beside)]

    def end_turn(self, context: Context, sequence: int = 0) -> None:
        """See `LanguageModel`."""
        self.target.end_turn(context)
        self.small.end_turn(context)

    def reset(self) -> None:
        """See `LanguageModel`."""
        self.target.reset()
        self.small.reset()

    @contextmanager
    def hold(self, sequence: int = 0) -> Iterator[None]:
        """Claims both models."""
        with self.target.hold(), self.small.model.hold():
            yield


def _name(context: Context, tail: NDArray[np.int32]) -> bytes:
    return context.tokens.tobytes() + tail.tobytes()
