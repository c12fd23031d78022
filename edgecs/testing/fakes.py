"""Public fakes: models, drafters and a tokenizer that need no weights.

`TableModel` is a language model whose distribution depends on every token before it, so
an off-by-one in any cache changes its answer. `CachingModel` is the same model with a
`PrefixCache` for each of its sequences: it computes from its cells, right or wrong.
`ScriptedDrafter` proposes a given text, with a given rate of errors. `FaultyDrafter`
fails after some proposals, in a given way.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import (
    NOTHING,
    Choose,
    Draft,
    Request,
    Rows,
    Verdict,
    no_sequence,
)
from edgecs.engines.kv_prefix import PrefixCache
from edgecs.engines.kv_snapshot import KVSnapshot
from edgecs.engines.lease import ExclusiveUse
from edgecs.engines.llama.random_gguf import write_random_gguf as write_random_gguf
from edgecs.errors import ContextFull, ModelError


class ByteTokenizer:
    """Ids 0-255 are bytes; `vocab_size - 1` ends a generation and has no text."""

    chat_template: str | None = None
    bos = eos = ""
    controls: frozenset[str] = frozenset()

    def __init__(self, vocab_size: int = 257) -> None:
        self.ends = frozenset({vocab_size - 1})

    def encode(self, text: str, *, document: bool = True) -> Tokens:
        """The UTF-8 bytes of `text`."""
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)

    def pieces(self) -> list[bytes]:
        """The bytes; later ids have no text."""
        return [bytes([i]) for i in range(256)]

    def spelling(self, token: int) -> str:
        """The text of a token; a control character for the end token."""
        return "\x03" if token in self.ends else self.piece(token).decode("latin-1")

    def piece(self, token: int) -> bytes:
        """One byte, or none for ids beyond 255 and for the end token."""
        return b"" if token in self.ends or token > 255 else bytes([token])


class Endless(ByteTokenizer):
    """A ByteTokenizer of which no token ends a generation."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = frozenset()


class TableModel:
    """A random distribution for every prefix: logits are a hash of all tokens before.

    sharpness scales the logits; rewindable=False only makes sessions not draft. `rows`
    computes one request of a call.
    """

    def __init__(
        self,
        vocab_size: int,
        seed: int = 0,
        *,
        n_ctx: int = 4096,
        sharpness: float = 3.0,
        rewindable: bool = True,
        sequences: int = 1,
    ) -> None:
        self.vocab_size = vocab_size
        self.n_ctx = n_ctx
        self.max_draft = 63
        self.max_leaves = 63
        self.sequences = sequences
        self.rewindable = rewindable
        self.copy_cost: int | None = None
        self.cancel = threading.Event()
        self._seed = seed
        self._sharpness = sharpness
        self._holders = [ExclusiveUse("this model") for _ in range(sequences)]

    def law(self, prefix: Sequence[int] | Tokens) -> NDArray[np.float32]:
        """Logits after `prefix`, float32 [vocab_size]."""
        data = np.asarray(prefix, dtype="<i4").tobytes()
        digest = hashlib.blake2b(data, key=self._seed.to_bytes(8), digest_size=8)
        random = np.random.default_rng(int.from_bytes(digest.digest()))
        logits = random.standard_normal(self.vocab_size, dtype=np.float32)
        return logits * np.float32(self._sharpness)

    def greedy(self, prompt: Sequence[int] | Tokens, n: int) -> list[int]:
        """The next n tokens, decoded one by one without any of edgecs."""
        return self.alone(prompt, n, lambda row, tokens: int(row.argmax()))

    def alone(
        self,
        prompt: Sequence[int] | Tokens,
        n: int,
        choose: Callable[[NDArray[np.float32], Tokens], int],
    ) -> list[int]:
        """The next n tokens that `choose` picks, one by one."""
        tokens = np.array(prompt, dtype=np.int32)
        for _ in range(n):
            chosen = np.int32(choose(self.law(tokens), tokens))
            tokens = np.append(tokens, chosen)
        said: list[int] = tokens[len(prompt) :].tolist()
        return said

    def score(self, requests: Sequence[Request]) -> list[Rows]:
        """See `rows`; every request gets its own."""
        assert len({request.sequence for request in requests}) == len(requests)
        return [self.rows(request) for request in requests]

    def rows(self, request: Request) -> Rows:
        """Rows of `law`, for chains and trees."""
        context, draft = request.context, request.draft
        self._check_room(request)
        prefixes = [context.tokens.tolist()]
        for parent, token in zip(draft.parents, draft.tokens, strict=True):
            prefixes.append([*prefixes[parent + 1], int(token)])
        rows = np.stack([self.law(prefix) for prefix in prefixes])
        return Rows(rows, fed=len(context) + len(draft))

    def _check_room(self, request: Request) -> None:
        context, draft = request.context, request.draft
        if len(context) + len(draft) > self.n_ctx:
            raise ContextFull(f"{len(context)} + {len(draft)} tokens exceed the fake")

    def end_turn(self, context: Context, sequence: int = 0) -> None:
        """Does nothing: there is no cache."""

    def reusable(
        self, tokens: Tokens, sequence: int = 0, *, copied: bool = False
    ) -> int:
        """Returns 0: there is no cache."""
        return 0

    def copy(self, source: int, target: int, length: int) -> bool:
        """Returns False: there are no cells."""
        return False

    def forget(self, sequence: int) -> None:
        """Does nothing: there are no cells."""

    def reset(self) -> None:
        """Does nothing: there is no state."""

    def hold(self, sequence: int = 0) -> AbstractContextManager[None]:
        """Allows one holder of a sequence at a time."""
        if not 0 <= sequence < self.sequences:
            raise ModelError(no_sequence(sequence, self.sequences))
        return self._holders[sequence].hold()


class CachingModel(TableModel):
    """A TableModel that computes from its cells: stale cells give wrong logits.

    partial=False: it cannot remove single cells. trees=False: it takes only chains.
    copy_cost: see `LanguageModel`. `cells` are those of sequence 0.
    """

    def __init__(
        self,
        vocab_size: int,
        seed: int = 0,
        *,
        partial: bool = True,
        n_ctx: int = 4096,
        sequences: int = 1,
        trees: bool = False,
        copy_cost: int | None = None,
    ) -> None:
        super().__init__(vocab_size, seed, n_ctx=n_ctx, sequences=sequences)
        self.copy_cost = copy_cost
        self.max_leaves = 63 if trees else 1
        self.fail_next = False
        self._cells = [_FakeCells(partial) for _ in range(sequences)]
        self.cells = self._cells[0].ids

    def rows(self, request: Request) -> Rows:
        """Adds missing cells, then computes the rows from the cells alone."""
        self._check_room(request)
        own, (context, draft) = self._cells[request.sequence], request[:2]
        assert draft.is_chain or self.max_leaves > 1, "this fake takes chains"
        kept = own.cache.keep(context, len(context) - 1)
        pending = context.tokens[kept:].tolist()
        own.cache.expect()
        own.ids.extend(pending)
        own.tree = [*zip(draft.parents.tolist(), draft.tokens.tolist(), strict=True)]
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("the engine failed after it had written its cells")
        prefixes = [own.ids.copy()]
        for parent, token in own.tree:
            prefixes.append([*prefixes[parent + 1], token])
        rows = np.stack([self.law(prefix) for prefix in prefixes])
        if draft.is_chain:
            own.ids.extend(draft.tokens.tolist())
            own.tree = []
            pending += draft.tokens.tolist()
        own.cache.extend(pending, context)
        if not draft.is_chain:
            own.cache.branch(draft)
        return Rows(rows, fed=len(context) - kept + len(draft))

    def end_turn(self, context: Context, sequence: int = 0) -> None:
        """Keeps at most the cells of all tokens but the last."""
        self._cells[sequence].cache.keep(context, len(context) - 1)

    def reusable(
        self, tokens: Tokens, sequence: int = 0, *, copied: bool = False
    ) -> int:
        """Length of the prefix that the prompt and the cells share."""
        return self._cells[sequence].cache.reusable(tokens, copied=copied)

    def copy(self, source: int, target: int, length: int) -> bool:
        """Copies token ids."""
        own, other = self._cells[target], self._cells[source]
        own.cache.reset()
        own.cache.expect()
        own.ids.extend(other.ids[:length])
        own.cache.share(other.cache, length)
        return True

    def snapshot(self, sequence: int = 0) -> KVSnapshot | None:
        """The cells of a sequence, for `restore`; None if it has none."""
        own = self._cells[sequence]
        if not len(own.cache):
            return None
        own.cache.trim(len(own.cache))
        return KVSnapshot(own.cache.tokens, np.array(own.ids, "<i4").tobytes(), None)

    def restore(self, cells: KVSnapshot, sequence: int = 0) -> bool:
        """Replaces the cells of a sequence."""
        own = self._cells[sequence]
        own.cache.reset()
        if len(cells.data) != 4 * len(cells.tokens):
            return False
        own.ids.extend(np.frombuffer(cells.data, "<i4").tolist())
        own.cache.reset_to(cells.tokens)
        return True

    def forget(self, sequence: int) -> None:
        """Empties the cells of a sequence."""
        self._cells[sequence].cache.reset()

    def reset(self) -> None:
        """Empties the cells."""
        for own in self._cells:
            own.cache.reset()


class _FakeCells:
    """Cells of one sequence: token ids, and after them the nodes of a tree."""

    def __init__(self, partial: bool) -> None:
        self.ids: list[int] = []
        self.tree: list[tuple[int, int]] = []  # parent and token of each node
        self.cache = PrefixCache(self._drop, select=self._select)
        self._partial = partial

    def _drop(self, length: int) -> int:
        left = length if self._partial else 0
        del self.ids[left:]
        self.tree = []
        return left

    def _select(self, path: Sequence[int]) -> None:
        parents = [self.tree[node][0] for node in path]
        assert parents == [-1, *path][: len(path)], "no path from the context outwards"
        self.ids += [self.tree[node][1] for node in path]
        self.tree = []


class ScriptedDrafter:
    """Proposes the continuation in a script, by position in the conversation.

    script: the whole conversation, prompt included. wrong: probability that a token is
    replaced by another one (any id but the right one, below vocab_size).
    """

    def __init__(
        self,
        script: Sequence[int] | Tokens,
        *,
        wrong: float = 0.0,
        vocab_size: int = 2,
        seed: int = 0,
        name: str = "script",
    ) -> None:
        self.name = name
        self.script = np.array(script, dtype=np.int32)
        random = np.random.default_rng(seed)
        others = self.script + random.integers(1, vocab_size, self.script.size)
        spoilt = random.random(self.script.size) < wrong
        self.script[spoilt] = others[spoilt] % vocab_size
        self.seen: list[Verdict] = []

    def propose(self, context: Context, k: int, choose: Choose | None = None) -> Draft:
        """The script's next k tokens."""
        tokens = self.script[len(context) : len(context) + k]
        return Draft.chain(tokens, self.name) if tokens.size else NOTHING

    def observe(
        self, context: Context, draft: Draft, rows: Rows, verdict: Verdict
    ) -> None:
        """Records the verdict."""
        self.seen.append(verdict)


class FaultyDrafter(ScriptedDrafter):
    """A ScriptedDrafter that fails after some proposals.

    after: number of valid proposals. fails: given a valid draft, raises or returns
    another proposal. asked: proposals so far.
    """

    def __init__(
        self,
        script: Sequence[int] | Tokens,
        fails: Callable[[Draft], Draft],
        *,
        after: int = 0,
        name: str = "faulty",
    ) -> None:
        super().__init__(script, name=name)
        self.fails = fails
        self.after = after
        self.asked = 0

    def propose(self, context: Context, k: int, choose: Choose | None = None) -> Draft:
        """The script's next k tokens, or the result of `fails`."""
        self.asked += 1
        draft = super().propose(context, k, choose)
        return draft if self.asked <= self.after else self.fails(draft)
