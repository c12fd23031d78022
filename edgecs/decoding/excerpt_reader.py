"""A drafter's model behind a context longer than its own: it reads an excerpt.

Its rows are those of the excerpt, at consecutive positions, so its cells are few and
its calls are short. They only guess: the target, which reads everything, verifies them.

An excerpt is half as long as the model's context. The tokens that follow are appended
to it until the context is full or another answer begins. Then another excerpt is
chosen, which has to be read: `unread` says how much, for a planner.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecs.core.context import Context
from edgecs.core.draft import LanguageModel, OneSequence, Request, Rows
from edgecs.decoding.retrieval import excerpt
from edgecs.errors import ContextFull

# chosen: a draft of a quarter leaves room for an excerpt and for the text after it.
_DRAFT = 4  # a draft has at most 1 / _DRAFT of the model's context


@dataclass
class _Text:
    """What the model reads instead of a context."""

    source: Context  # the context, its root
    read: int  # its committed tokens that are in the excerpt or left out of it
    excerpt: Context  # a root


class ExcerptReader(OneSequence):
    """A language model whose context has no end.

    A context that the model has room for is read as it is, and a longer one as an
    excerpt (`retrieval.excerpt`). model: has as many sequences as this one. span: most
    tokens of a context that are read, None: those that the model has room for.
    """

    n_ctx = 2**31 - 1  # tokens that are not in the excerpt are dropped

    def __init__(self, model: LanguageModel, span: int | None = None) -> None:
        self.model, self.vocab_size = model, model.vocab_size
        self.span = model.n_ctx if span is None else min(span, model.n_ctx)
        self.max_draft = min(model.max_draft, self.span // _DRAFT)
        self.max_leaves, self.sequences = model.max_leaves, model.sequences
        self.rewindable, self.cancel = model.rewindable, model.cancel
        self.snapshots: int | None = getattr(model, "snapshots", None)
        self._texts = dict[int, _Text]()  # by sequence
        self._asked = dict[int, int]()  # tokens before the answer, by sequence
        self._last = dict[int, tuple[Context, int]]()  # root and size of what was read

    def begin(self, start: int, sequence: int = 0) -> None:
        """Called when an answer begins. start: number of tokens before it."""
        self._texts.pop(sequence, None)
        self._asked[sequence] = start

    def score(self, requests: Sequence[Request]) -> list[Rows]:
        """The rows of the model after what it reads, see `LanguageModel`.

        Raises ContextFull for a draft that leaves it nothing to read.
        """
        inner = []
        for context, draft, sequence, cancel in requests:
            here = self._view(context, len(draft), sequence)
            inner.append(Request(here, draft, sequence, cancel))
        rows = self.model.score(inner)
        for here, _, sequence, _ in inner:
            self._last[sequence] = here.root, len(here)
        return rows

    def unread(self, context: Context, sequence: int = 0) -> int:
        """How many tokens the next call for a context reads besides its draft.

        If the longest draft does not fit after the excerpt, another one is chosen now.
        """
        here = self._view(context, self.max_draft, sequence)
        root, size = self._last.get(sequence, (here.root, 0))
        if root is not here.root:
            size = min(size, len(root), len(here))
            other = np.flatnonzero(root.tokens[:size] != here.tokens[:size])
            size = int(other[0]) if other.size else size
        return max(1, len(here) - size)

    def reads(self, context: Context, sequence: int = 0) -> int | None:
        """Tokens that are read of a context; None: all, or it was not read yet."""
        text, last = self._texts.get(sequence), self._last.get(sequence)
        if text is None or text.source is not context.root:
            return None
        if last is None or last[0] is not text.excerpt:
            return None
        return len(text.excerpt) + len(context) - text.read

    def _view(self, context: Context, drafted: int, sequence: int) -> Context:
        """What is read instead of a context, with room for a draft after it."""
        text, room = self._texts.get(sequence), self.span - drafted
        if (
            text is not None
            and text.source is context.root
            and len(text.excerpt) + len(context) - text.read <= room
        ):
            return self._extended(text, context)
        if len(context) <= room:
            self._texts.pop(sequence, None)
            return context
        committed, asked = context.committed, self._asked.get(sequence)
        size = min(self.span // 2, room - (len(context) - committed))
        if size < 1:  # the tokens of the draft so far leave nothing of the context
            if room < 1:
                raise ContextFull(
                    f"a draft of {drafted} tokens leaves nothing of the {self.span} "
                    "tokens that this drafter reads"
                )
            return Context(excerpt(context.tokens, room, asked))
        chosen = excerpt(context.tokens[:committed], size, asked)
        text = _Text(context.root, committed, Context(chosen))
        self._texts[sequence] = text
        return self._extended(text, context)

    def _extended(self, text: _Text, context: Context) -> Context:
        """The excerpt with the tokens of the context that followed."""
        tokens, committed = context.tokens, context.committed
        if committed > text.read:
            text.excerpt.append(tokens[text.read : committed])
            text.read = committed
        tail = tokens[committed:]
        return text.excerpt.with_tail(tail) if tail.size else text.excerpt

    def end_turn(self, context: Context, sequence: int = 0) -> None:
        """See `LanguageModel`."""
        if len(context):
            self.model.end_turn(self._view(context, 0, sequence), sequence)

    def forget(self, sequence: int) -> None:
        """See `LanguageModel`."""
        self._drop(sequence)
        self.model.forget(sequence)

    def reset(self) -> None:
        """See `LanguageModel`."""
        for sequence in range(self.sequences):
            self._drop(sequence)
        self.model.reset()

    def _drop(self, sequence: int) -> None:
        for by_sequence in self._texts, self._asked, self._last:
            by_sequence.pop(sequence, None)

    def hold(self, sequence: int = 0) -> AbstractContextManager[None]:
        """See `LanguageModel`."""
        return self.model.hold(sequence)

    def pretend(self, context: Context) -> bool:
        """See `calibrate.probe: Measurable`."""
        self.reset()
        pretend: Any = getattr(self.model, "pretend", None)
        fits = len(context) <= self.span
        return bool(pretend and fits and pretend(context))

    def rewind(self, context: Context) -> None:
        """Drop the cells that a call for this context cannot use, ahead of the call."""
        if rewind := getattr(self.model, "rewind", None):
            rewind(self._view(context, 0, 0))

    def close(self) -> None:
        """Frees the model, if it can be closed; may be called again."""
        if close := getattr(self.model, "close", None):
            close()
