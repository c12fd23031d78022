"""Data types of a round, and the protocols of drafters and language models.

A `Drafter` proposes tokens, a `LanguageModel` scores them, `verify` compares the two.
This module is independent of engines, caches and text.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Context, Tokens
from edgecs.errors import ConfigError, ModelError

Row = NDArray[np.float32]
"""The target's logits at one position, float32 [vocabulary]."""

Law = NDArray[np.float64]
"""Probabilities of all tokens at one position, float64 [vocabulary]."""


class Choose(Protocol):
    """The choice of a token at a position: a deterministic function."""

    def __call__(self, row: Row, tokens: Tokens) -> int:
        """The token that follows `tokens`, which are all before it."""

    def confidence(self, row: Row, tokens: Tokens, token: int) -> float:
        """Probability of a token in the distribution that is chosen from."""

    def alternatives(self, row: Row, tokens: Tokens, k: int) -> list[tuple[int, float]]:
        """The k tokens that come next in the order of the choice, the best first.

        Each with its probability in the distribution that is chosen from. They are
        drafts, so they may be approximate: masks are not applied to them.
        """

    def margin(self, row: Row, tokens: Tokens) -> float:
        """The smallest change of a logit that gives another choice."""

    def keeps(
        self, row: Row, tokens: Tokens, token: int, q: float, lenience: float
    ) -> bool:
        """Whether a lenient reviewer accepts a drafted token.

        q: its probability by the drafter.
        """


@runtime_checkable
class Laws(Choose, Protocol):
    """A choice that also states the distribution it is made from."""

    def law(self, row: Row, tokens: Tokens) -> Law:
        """The distribution that is chosen from, float64 [vocabulary]."""

    def belief(self, row: Row, tokens: Tokens) -> Law:
        """The same without temperature and truncation; all 0: no token is left."""

    @property
    def noisy(self) -> bool:
        """Whether choices are random."""

    def word(self, tokens: Tokens) -> int:
        """The word that all noise after these tokens comes from, see `noise.stream`."""

    def reseeded(self, number: int) -> Laws:
        """The same choice with other noise, for each number."""

    def redraw(self, row: Row, tokens: Tokens) -> int:
        """A choice from `law` whose noise is independent of that of the first one.

        Without noise, at temperature 0, it is the same choice.
        """


@dataclass(frozen=True, slots=True)
class Draft:
    """Proposed tokens: a chain, or a tree in which parents precede their children.

    An empty draft proposes nothing.
    """

    tokens: Tokens  # int32 [n]
    parents: NDArray[np.int32]  # int32 [n]: index of the parent node, -1 the context
    sources: tuple[str, ...]  # [n]: drafter of each token
    confidences: NDArray[np.float64]  # [n]: the drafter's probability, 1: not stated
    # [n]: the model whose law each token was drawn from, "": none; (): none of them
    writers: tuple[str, ...] = ()

    @staticmethod
    def chain(
        tokens: Sequence[int] | Tokens,
        by: str | Sequence[str],
        confidences: Sequence[float] | NDArray[np.float64] | None = None,
        writers: tuple[str, ...] = (),
    ) -> Draft:
        """A draft without branches. by: its drafter, or that of each token."""
        ids = np.asarray(tokens, dtype=np.int32)
        sources = (by,) * ids.size if isinstance(by, str) else tuple(by)
        if confidences is None:
            confidences = _certain(ids.size)
        stated = np.asarray(confidences, dtype=np.float64)
        return Draft(ids, _chain_parents(ids.size), sources, stated, writers)

    def __len__(self) -> int:
        return self.tokens.size

    @property
    def is_chain(self) -> bool:
        """True when every token follows the one before it."""
        if self.parents.base is _CHAIN:  # as `chain` makes it: nothing to compare
            return True
        return bool(np.array_equal(self.parents, _chain_parents(len(self))))

    @property
    def depths(self) -> list[int]:
        """Number of draft tokens before each token on its path, [n]."""
        if self.is_chain:
            return list(range(len(self)))
        depths: list[int] = []
        for parent in self.parents.tolist():
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        return depths

    @property
    def leaves(self) -> list[int]:
        """The nodes without children, in order; a chain has one."""
        if self.is_chain:
            return [len(self) - 1] if len(self) else []
        inner = set(self.parents.tolist())
        return [node for node in range(len(self)) if node not in inner]

    @property
    def first_path(self) -> Draft:
        """The chain of first children, from the context outwards."""
        if self.is_chain:
            return self
        path: list[int] = []
        for node, parent in enumerate(self.parents.tolist()):
            if parent == (path[-1] if path else -1):
                path.append(node)
        sources = tuple(self.sources[node] for node in path)
        return Draft.chain(self.tokens[path], sources, self.confidences[path])

    def path_along(self, tokens: Sequence[int]) -> list[int]:
        """The nodes, from the context outwards, that match `tokens`.

        Of siblings with the same token the first one matches.
        """
        children = self.children()
        path, here = list[int](), -1
        for token in tokens:
            child = children.get((here, token))
            if child is None:
                break
            path.append(child)
            here = child
        return path

    def children(self) -> dict[tuple[int, int], int]:
        """The first node by its parent (-1: the context) and its token."""
        edges = zip(self.parents.tolist(), self.tokens.tolist(), strict=True)
        return {edge: node for node, edge in reversed(list(enumerate(edges)))}

    def check(self) -> None:
        """Raises ConfigError if the fields are inconsistent."""
        n = self.tokens.size
        if (
            self.parents.base is _CHAIN  # as `chain` makes it
            and self.tokens.dtype is _INT32
            and self.tokens.ndim == 1
            and self.parents.size == n == len(self.sources) == self.confidences.size
        ):
            return
        if self.tokens.dtype != np.int32 or self.tokens.shape != (n,):
            raise ConfigError(
                f"tokens must be int32 [n], got {self.tokens.dtype} "
                f"{list(self.tokens.shape)}"
            )
        sizes = self.parents.size, len(self.sources), self.confidences.size
        if sizes != (n, n, n) or self.confidences.dtype.kind != "f":
            raise ConfigError(
                f"{n} tokens have parents, sources and confidences {sizes}, of the "
                f"type {self.confidences.dtype}: one of each is needed for each token"
            )
        if not self.is_chain and not _come_first(self.parents):
            raise ConfigError("a parent must be -1 or an earlier token of the draft")

    def clip(self, most: int) -> Draft:
        """The first `most` tokens; self if there are no more."""
        if len(self) <= most:
            return self
        return Draft(
            self.tokens[:most],
            self.parents[:most],
            self.sources[:most],
            self.confidences[:most],
            self.writers[:most],
        )

    def then(self, other: Draft) -> Draft:
        """Both as one draft, `other` continuing after the last token of self."""
        if not len(self):
            return other
        tokens = np.concatenate([self.tokens, other.tokens])
        stated = np.concatenate([self.confidences, other.confidences])
        sources = self.sources + other.sources
        writers: tuple[str, ...] = ()
        if self.writers or other.writers:
            writers = _padded(self) + _padded(other)
        if self.is_chain and other.is_chain:
            return Draft.chain(tokens, sources, stated, writers)
        moved = other.parents + np.int32(len(self))  # -1 becomes the last token
        return Draft(tokens, np.concatenate([self.parents, moved]), sources, stated)


def _padded(draft: Draft) -> tuple[str, ...]:
    return draft.writers or ("",) * len(draft)


_INT32 = np.dtype(np.int32)
_CHAIN = np.arange(-1, 1023, dtype=np.int32)
_CHAIN.flags.writeable = False
_CERTAIN = np.ones(1024)
_CERTAIN.flags.writeable = False


def _chain_parents(n: int) -> NDArray[np.int32]:
    return _CHAIN[:n] if n <= _CHAIN.size else np.arange(-1, n - 1, dtype=np.int32)


def _come_first(parents: NDArray[np.int32]) -> bool:
    return bool(((parents >= -1) & (parents < np.arange(parents.size))).all())


def _certain(n: int) -> NDArray[np.float64]:
    return _CERTAIN[:n] if n <= _CERTAIN.size else np.ones(n)


NOTHING = Draft.chain((), "")
"""The empty draft."""


class Request(NamedTuple):
    """One sequence's part of a call.

    sequence: the model's KV sequence that holds the context. cancel: when set, the call
    may end early, see `LanguageModel.score`.
    """

    context: Context
    draft: Draft = NOTHING
    sequence: int = 0
    cancel: threading.Event | None = None


class Rows(NamedTuple):
    """The result of one request; views that are valid until the next call."""

    logits: NDArray[np.float32]  # [1 + n, vocabulary]: row 0 follows the context,
    #                              row i + 1 follows draft node i
    fed: int  # tokens that this call computed; the rest was in the cache
    hidden: NDArray[np.float32] | None = None  # [1 + n, width] or None: not asked for
    # [1 + n, vocabulary]: of a second model, see `decoding.beside`; None: there is none
    beside: NDArray[np.float32] | None = None


class Verdict(NamedTuple):
    """The reviewer's decision on a draft: the accepted nodes and the next token."""

    path: tuple[int, ...]  # accepted draft nodes, from the context outwards
    token: int  # the first choice that was not drafted, or the bonus token


class LanguageModel(Protocol):
    """A function from tokens to logits that manages its own KV cache.

    It has one or more sequences, each with KV cells of its own, so that conversations
    do not evict each other. A sequence has one holder at a time: `hold` raises
    ModelError for a second one. If an attribute `uniform` is true, a row has the same
    bits whatever the width of its call. If an attribute `snapshots` is a number, the
    accepted part of a draft of more tokens is computed again if the rest is rejected.
    One that needs more than tokens has a method `ready`: whether it can draft after a
    context. One that reads a part of a long context only is a
    `decoding.excerpt_reader: ExcerptReader`.
    """

    vocab_size: int
    n_ctx: int  # tokens that context and draft of one sequence may have together
    max_draft: int  # tokens that one draft may have
    max_leaves: int  # leaves that one draft may have; 1: drafts are chains
    sequences: int  # how many there are; numbered from 0
    rewindable: bool  # False: rejected tokens cannot be removed, so no drafts
    copy_cost: int | None  # prompt tokens that are read in the time of a `copy`;
    #                        None: cells cannot be copied
    cancel: threading.Event  # when set, a long `score` ends early with Cancelled

    def score(self, requests: Sequence[Request]) -> list[Rows]:
        """Logits after the context and after every draft node of each request.

        At most one request per sequence. Raises ContextFull when a context and its
        draft exceed `n_ctx`, Cancelled when `cancel` or that of a request is set
        between two prefill chunks; either leaves the model usable.
        """

    def end_turn(self, context: Context, sequence: int = 0) -> None:
        """Trims the KV cells of a sequence to all tokens of the context but the last.

        Plain decoding ends there, so the next turn's prefill starts at the same token
        and computes the same bits, whatever was drafted.
        """

    def reusable(
        self, tokens: Tokens, sequence: int = 0, *, copied: bool = False
    ) -> int:
        """How many first tokens of a new prompt the cells of a sequence save.

        At least the last token is always computed. copied: how many cells `copy` could
        take to another sequence so that its rows are, bit for bit, those of a sequence
        that has read the prompt itself.
        """

    def copy(self, source: int, target: int, length: int) -> bool:
        """Replaces the cells of a sequence by the first ones of another sequence.

        length: at most what `reusable` gives for copied cells. Returns False if the
        engine fails; the target then has no cells.
        """

    def forget(self, sequence: int) -> None:
        """Drops all cells of a sequence, and what else it has of its tokens."""

    def reset(self) -> None:
        """Clears all state, as if just loaded."""

    def hold(self, sequence: int = 0) -> AbstractContextManager[None]:
        """Claims a sequence for the time of a `with` block."""


def works_alone(model: LanguageModel) -> bool:
    """Whether a drafter's model needs nothing of its target but tokens."""
    return getattr(model, "ready", None) is None


class OneSequence:
    """The part of a `LanguageModel` with one sequence that concerns several."""

    sequences = 1
    copy_cost: int | None = None

    def reusable(
        self, tokens: Tokens, sequence: int = 0, *, copied: bool = False
    ) -> int:
        """Returns 0: no scheduler asks for a model with one sequence."""
        return 0

    def copy(self, source: int, target: int, length: int) -> bool:
        """Returns False, as it has one sequence."""
        return False

    def forget(self, sequence: int) -> None:
        """Does nothing: no scheduler asks for a model with one sequence."""


def sole_request(requests: Sequence[Request]) -> Request:
    """The request of a call to a model with one sequence; ModelError for others."""
    if len(requests) != 1:
        raise ModelError(f"this model takes one request in a call, got {len(requests)}")
    if requests[0].sequence:
        raise ModelError(no_sequence(requests[0].sequence, 1))
    return requests[0]


def no_sequence(number: int, sequences: int) -> str:
    """The message for an invalid sequence number."""
    return f"there is no sequence {number}: this model was loaded with {sequences}"


def score_one(model: LanguageModel, context: Context, draft: Draft = NOTHING) -> Rows:
    """The rows of a call with one request, of sequence 0."""
    return model.score([Request(context, draft)])[0]


class Drafter(Protocol):
    """Proposes the next tokens of the reviewer above it."""

    name: str  # as in statistics and in Draft.sources

    def propose(self, context: Context, k: int, choose: Choose) -> Draft:
        """At most k tokens that may follow the context, its tail included."""

    def observe(
        self, context: Context, draft: Draft, rows: Rows, verdict: Verdict
    ) -> None:
        """Called once per round with its outcome, before its tokens are committed."""


@runtime_checkable
class Remembering(Protocol):
    """A drafter or a schedule that knows something of other conversations."""

    def allow(self, allowed: bool) -> None:
        """Whether it may learn, and use what is kept elsewhere, from now on."""
