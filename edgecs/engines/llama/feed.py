"""The tokens that remain to be computed for the requests of a call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecs.core.draft import Request
from edgecs.engines.llama.sequence import LlamaSequence

Logits = NDArray[np.float32]
NO_ROWS: Logits = np.empty((0, 0), dtype=np.float32)


class Feed(NamedTuple):
    """The tokens of one request for a call, after its existing cells."""

    request: Request
    sequence: LlamaSequence
    pending: list[int]  # tokens of the context
    read: int  # context tokens of the request, including those of earlier calls
    row: NDArray[np.float32] | None = None  # after the context, if it is known

    def __len__(self) -> int:
        return len(self.pending) + len(self.request.draft)

    @property
    def is_prompt(self) -> bool:
        """Whether it is a part of a prompt, whose states are not needed."""
        return len(self.pending) > 1 and not len(self.request.draft)

    @property
    def rows(self) -> int:
        """Number of output rows: of the last context token and of the draft."""
        return bool(self.pending) + len(self.request.draft)

    def tokens(self) -> list[int]:
        """All tokens to be computed."""
        draft = self.request.draft
        return self.pending + draft.tokens.tolist() if len(draft) else self.pending

    def nodes(self, padding: int = 0) -> tuple[list[int], list[int], list[list[int]]]:
        """All tokens to be computed, their positions, their sequence ids.

        padding: number of copies of the last token after a chain.
        """
        draft, own = self.request.draft, self.sequence
        start = len(own.cache)
        end = start + len(self.pending)
        if draft.is_chain:
            tokens = self.tokens()
            tokens = [*tokens, *tokens[-1:] * padding]
            last = start + len(tokens)
            return tokens, [*range(start, last)], [[own.id]] * len(tokens)
        positions, ids = own.grow(draft, end)
        before = [own.sharing] * len(self.pending)
        return self.tokens(), [*range(start, end), *positions], before + ids

    def record(self, first: int) -> None:
        """Record rows of all its tokens, before `computed`.

        first: index of its first output row in the call.
        """
        own, (context, draft, *_) = self.sequence, self.request
        begin, start = first + self.rows - len(self), len(own.cache)
        pending = len(self.pending)
        for features, states in own.recorded:
            rows = features.rows(begin, len(self))
            if draft.is_chain:
                states.put(context, start, rows)
            else:
                states.put(context, start, rows[:pending])
                states.branch(draft, rows[pending:])

    def computed(self, states: Logits | None) -> None:
        """Record the cells that the call has computed; states: [rows, width]."""
        own, (context, draft, *_) = self.sequence, self.request
        chain, last = draft.is_chain, int(bool(self.pending))
        begin = len(own.cache) + len(self.pending) - last
        own.cache.extend(self.tokens() if chain else self.pending, context)
        if own.states is not None and states is not None:
            own.states.put(context, begin, states if chain else states[:last])
            if not chain:
                own.states.branch(draft, states[last:])
        if not chain:
            own.cache.branch(draft)


def groups(
    feeds: Sequence[Feed], most: int, *, padded: bool = False
) -> Iterator[list[Feed]]:
    """Group feeds into calls of at most `most` tokens, prompts first.

    padded: all feeds of a group but prompts will be as wide as the widest.
    """
    group: list[Feed] = []
    for feed in sorted(feeds, key=lambda feed: not feed.is_prompt):
        sizes = [*map(len, group), len(feed)]
        pads = padded and not feed.is_prompt
        size = max(sizes) * len(sizes) if pads else sum(sizes)
        if group and (size > most or group[0].is_prompt is not feed.is_prompt):
            yield group
            group = []
        group.append(feed)
    if group:
        yield group
