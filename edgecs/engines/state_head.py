"""A head on a target's hidden states as a `LanguageModel`, in any engine.

Input i is token i and the target's state that predicted it. In a draft, where the
target has not computed a state yet, the head's last output replaces it (EAGLE, arXiv
2401.15077). A draft is therefore generated token by token, and a head cannot review
other drafters. The states of committed tokens are read when a draft begins, so a head
that is not asked costs nothing.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import Draft, OneSequence, Request, Rows, sole_request
from edgecs.engines.hidden_states import State, States
from edgecs.engines.kv_prefix import PrefixCache
from edgecs.engines.lease import ExclusiveUse
from edgecs.errors import ModelError


class Output(NamedTuple):
    """What a head computes after a token."""

    logits: NDArray[np.float32]  # [1, vocabulary]: row of the next token
    state: State  # [1, width]: replaces the state of the target


class StateHead(OneSequence):
    """Proposes tokens from the hidden states that a target records.

    states: of the target; tokens without a known state are read with zeros. window:
    tokens that the cells have room for. before: number of tokens without a state that a
    new window begins with; -1: the head needs the states of all tokens. least: the
    first token of a text that the head reads.
    """

    rewindable = True
    max_leaves = 1
    n_ctx = 2**31 - 1  # tokens before the window are dropped
    max_draft = 0  # it cannot review drafts

    def __init__(
        self,
        name: str,
        states: States,
        vocab_size: int,
        cancel: threading.Event,
        *,
        window: int,
        before: int = -1,
        least: int = 0,
    ) -> None:
        self.vocab_size = vocab_size
        self.cancel = cancel
        self.window = window
        self._states, self._before, self._least = states, before, least
        # Tokens that are read at once, so that there is room for an answer.
        self._most = window // 2 if before >= 0 else window
        self._cache = PrefixCache(self._drop)
        self._holder = ExclusiveUse(f"the drafter {name}")
        self._closed = False
        # Cells from guessed states follow this context at this length.
        self._guesses: tuple[Context, int] | None = None
        self._sure = 0  # cells before the guesses
        self._at = 0  # cells up to the one that `_last` came from
        nothing: State = np.empty((0, 0), dtype=np.float32)
        self._last = Output(nothing, nothing)

    @property
    def states(self) -> States:
        """The states that it reads."""
        return self._states

    @abstractmethod
    def _read(
        self, tokens: Tokens, states: State, cancel: threading.Event | None
    ) -> Output:
        """Compute cells with states of the target, [n, width]; the last output.

        `_computed` must be called after every call of the engine that adds cells.
        """

    @abstractmethod
    def _step(self, token: int, state: State) -> Output:
        """Compute one cell with a state of the head, [1, width]."""

    @abstractmethod
    def _drop(self, length: int) -> int:
        """Drop the cells from `length` on, see `PrefixCache`."""

    @abstractmethod
    def _free(self) -> None:
        """Free weights and cells."""

    def score(self, requests: Sequence[Request]) -> list[Rows]:
        """Logits after the context, see `LanguageModel`; there must be no draft."""
        context, draft, _, cancel = sole_request(requests)
        self._check(context, draft)
        cache, committed = self._cache, min(context.committed, len(context))
        kept = self._keep(context, committed)
        begin = cache.first + kept
        tokens = context.tokens[begin:]
        read = max(0, committed - begin)
        if read:
            known = self._states.of(context, max(begin, 1) - 1, committed - 1)
            if not begin:  # no state predicted the first token
                known = np.vstack((np.zeros((1, known.shape[1]), np.float32), known))
            self._last = self._read(tokens[:read], known, cancel)
            self._at = self._sure = len(cache)
            if self._before < 0:  # those from unknown states are computed again
                sure = self._known_end(context) + 1 - cache.first
                self._sure = max(0, min(self._sure, sure))
            self._guesses = context.root, committed
        for token in tokens[read:].tolist():
            self._last = self._step(token, self._last.state)
            self._at = len(cache)
        return [Rows(self._last.logits, tokens.size)]

    def ready(self, context: Context) -> bool:
        """Whether the target has computed the states that a draft begins with."""
        if self._before >= 0:
            return True
        committed = context.committed
        return committed > 1 and self._known_end(context) >= committed - 1

    def end_turn(self, context: Context, sequence: int = 0) -> None:
        """Drop cells that do not belong to the context, see `LanguageModel`."""
        if not self._closed:
            self._cache.keep(context, len(context) - 1 - self._cache.first)

    def reset(self) -> None:
        """Drop all cells, as if just loaded."""
        if not self._closed:
            self._cache.reset()
            self._guesses, self._sure = None, 0

    def hold(self, sequence: int = 0) -> AbstractContextManager[None]:
        """Claim the model; raises ModelError for a second holder."""
        return self._holder.hold()

    def close(self) -> None:
        """Free weights and cells; may be called again."""
        if not self._closed:
            self._closed = True
            self._free()

    def _computed(self, tokens: Tokens) -> None:
        self._cache.extend(tokens.tolist())

    def _check(self, context: Context, draft: Draft) -> None:
        if self._closed:
            raise ModelError("this drafter was closed: load it again")
        if len(draft):
            raise ModelError("a head cannot review a draft: pass an empty draft")
        if not len(context):
            raise ModelError("an empty context has no next token: give a prompt")

    def _keep(self, context: Context, committed: int) -> int:
        """Number of cells that are kept; starts a new window where that is better.

        Cells of a draft were computed from guessed states. They are valid while the
        draft grows, and are computed again when their tokens are committed.
        """
        cache, window = self._cache, self.window
        drafting = self._guesses == (context.root, committed)
        most = len(context) - 1 - cache.first
        kept = cache.keep(context, most if drafting else min(most, self._sure))
        if len(context) > committed and kept != self._at:
            # The output that a draft continues from is missing: compute it again.
            kept = cache.keep(context, min(self._sure, committed - 1 - cache.first))
        self._sure = min(self._sure, kept)
        seen, begin = len(context) - cache.first, self._window_begin(context, committed)
        full = seen > window or seen - kept > self._most
        better = begin < cache.first or cache.first < min(self._least, committed - 1)
        if kept <= 0 or full or better or self._lacks(context, kept):
            cache.reset(begin)
            self._sure = kept = 0
        return kept

    def _window_begin(self, context: Context, committed: int) -> int:
        """The first token that a new window would have."""
        first, end = self._states.known(context)
        if self._before < 0:
            begin = committed - 1 if first == end else first + (first > 0)
        else:
            begin = min(first, committed - 1) - self._before
        if committed - begin > self._most:
            begin = committed - self.window // 2
        return min(max(begin, self._least), committed - 1)

    def _lacks(self, context: Context, kept: int) -> bool:
        """Whether states are missing after the kept cells, before known ones."""
        first, end = self._states.known(context)
        return self._before < 0 and first < end and first >= self._cache.first + kept

    def _known_end(self, context: Context) -> int:
        """The end of the known states."""
        first, end = self._states.known(context)
        return end if first < end else 0
