"""A head in ONNX Runtime as a `LanguageModel`: one layer on the target's hidden states.

Input i is the target's final hidden state that predicted token i, and that token. In a
draft, where the target has not computed a state yet, the head's last output replaces it
(EAGLE, arXiv 2401.15077). A draft is therefore generated token by token, and a head
cannot review other drafters.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import Draft, OneSequence, Request, Rows, sole_request
from edgecs.engines.hidden_states import State, States
from edgecs.engines.kv_prefix import PrefixCache
from edgecs.engines.lease import ExclusiveUse
from edgecs.engines.onnx.engine import Engine
from edgecs.engines.onnx.graph import is_size
from edgecs.engines.onnx.id_map import IdMap
from edgecs.engines.onnx.watchdog import Watch
from edgecs.errors import ModelError
from edgecs.hub.drafter_manifest import DrafterManifest, read_drafter

# chosen: as many as heads are trained with (`edgecs_convert.distill.recipe`).
_BEFORE = 32  # tokens before the first known state that are read without one
_INPUTS = {"token", "state", "position", "mask", "past_key", "past_value"}
_OUTPUTS = ["logits", "next_state", "key", "value"]


class OnnxHead(OneSequence):
    """Proposes tokens from the hidden states that a target records.

    states: of the target; tokens without a known state are read with zeros. provider
    and provider_notes: see `OnnxModel`. Raises ModelError for an invalid folder or
    graph, or a head made for a target with states of another width.
    """

    rewindable = True
    max_leaves = 1
    n_ctx = 2**31 - 1  # tokens before the window are dropped
    max_draft = 0  # it cannot review drafts

    def __init__(
        self,
        drafter: Path | DrafterManifest,
        states: States,
        target_vocab_size: int,
        cancel: threading.Event,
        *,
        threads: int = 1,
        providers: Sequence[str] | None = None,
    ) -> None:
        manifest = read_drafter(drafter) if isinstance(drafter, Path) else drafter
        self.manifest = manifest
        self.vocab_size = target_vocab_size
        self.cancel = cancel
        self._states = states
        self._engine = Engine(manifest, cancel)
        with ExitStack() as undo:
            undo.callback(self._engine.close)
            cells, rows, width = self._engine.open(
                self._prepare, threads=threads, providers=providers
            )
            self._check_width(width)
            self._ids = IdMap(manifest, rows, target_vocab_size, spare=1)
            undo.pop_all()
        self.provider = self._engine.provider
        self.provider_notes = self._engine.provider_notes
        self._cells: _Cells | None = cells
        self._cache = PrefixCache(cells.drop)
        self._holder = ExclusiveUse(f"the drafter {manifest.name}")
        # Cells from guessed states follow this context at this length.
        self._guesses: tuple[Context, int] | None = None
        self._sure = 0  # cells before the guesses
        self._at = 0  # cells up to the one that `_last` came from
        nothing: State = np.empty((0, 0), dtype=np.float32)
        self._last = nothing, nothing  # last state and logits

    def score(self, requests: Sequence[Request]) -> list[Rows]:
        """Logits after the context, see `LanguageModel`; there must be no draft."""
        context, draft, *_ = sole_request(requests)
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
            self._feed(tokens[:read], known)
            self._sure, self._guesses = len(cache), (context.root, committed)
        for token in tokens[read:]:
            self._feed(np.array([token], dtype=np.int32), self._last[0])
        return [Rows(self._ids.to_target(self._last[1]), tokens.size)]

    def end_turn(self, context: Context, sequence: int = 0) -> None:
        """Drop cells that do not belong to the context, see `LanguageModel`."""
        if self._cells is not None:
            self._cache.keep(context, len(context) - 1 - self._cache.first)

    def reset(self) -> None:
        """Drop all cells, as if just loaded."""
        if self._cells is not None:
            self._cache.reset()
            self._guesses, self._sure = None, 0

    def hold(self, sequence: int = 0) -> AbstractContextManager[None]:
        """Claim the model; raises ModelError for a second holder."""
        return self._holder.hold()

    def close(self) -> None:
        """Frees weights and cells; may be called again."""
        self._engine.close()
        self._cells = None
        self._cache = PrefixCache(lambda length: length)

    def _prepare(
        self, session: ort.InferenceSession, provider: str
    ) -> tuple[_Cells, int, int]:
        """Tested cells, the number of tokens it can propose, the width of states."""
        takes = {node.name: node.shape for node in session.get_inputs()}
        gives = {node.name: node.shape for node in session.get_outputs()}
        if set(takes) != _INPUTS or set(gives) != set(_OUTPUTS):
            raise ModelError("the graph is not a head: make it with `edgecs distill`")
        shapes = {**takes, **gives}
        width, kv_width, rows = (
            _columns(name, shapes[name]) for name in ("state", "past_key", "logits")
        )
        cells = _Cells(session, self._engine.watch, self.manifest.window, kv_width)
        zeros = np.zeros((1, width), np.float32)
        logits, state = cells.run(np.zeros(1, dtype=np.int64), zeros, 0)
        for name, got, wanted in ("logits", logits, rows), ("next_state", state, width):
            if got.shape != (1, wanted):
                raise ModelError(
                    f"the graph gives {name} of shape {list(got.shape)}, not "
                    f"{[1, wanted]}: make it with `edgecs distill`"
                )
        cells.drop(0)
        return cells, rows, width

    def _check_width(self, width: int) -> None:
        """Raise ModelError for a head that was made for another target."""
        theirs, made_for = self._states.width, self.manifest.source
        if width != theirs:
            raise ModelError(
                f"the head {self.manifest.name} needs hidden states of width {width}, "
                f"but the target's have width {theirs}: use the target that it was "
                f"made for ({made_for or 'its manifest does not name it'})"
            )

    def _check(self, context: Context, draft: Draft) -> None:
        if self._cells is None:
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
        cache, window = self._cache, self.manifest.window
        drafting = self._guesses == (context.root, committed)
        most = len(context) - 1 - cache.first
        kept = cache.keep(context, most if drafting else min(most, self._sure))
        if len(context) > committed and kept != self._at:
            # The output that a draft continues from is missing: compute it again.
            kept = cache.keep(context, min(self._sure, committed - 1 - cache.first))
        self._sure = min(self._sure, kept)
        seen = len(context) - cache.first
        if kept <= 0 or seen > window or seen - kept > window // 2:
            first, _ = self._states.known(context)
            begin = max(0, committed - window // 2, min(first, committed - 1) - _BEFORE)
            cache.reset(begin)
            self._sure = kept = 0
        return kept

    def _feed(self, tokens: Tokens, states: State) -> None:
        """Compute cells; keeps the state and the logits after the last one."""
        assert self._cells is not None
        position = self._cache.first + len(self._cache)
        ids = self._ids.to_drafter(tokens)
        self._cache.expect()
        logits, state = self._engine.run(self._cells.run, ids, states, position)
        self._cache.extend(tokens.tolist())
        self._last, self._at = (state, logits), len(self._cache)


def _columns(name: str, shape: Sequence[Any]) -> int:
    """The width of one of the graph's matrices; raises ModelError if it is unknown."""
    if len(shape) != 2 or not is_size(shape[1]):
        raise ModelError(
            f"the graph has {name} of shape {shape}, not [n, width]: make it with "
            "`edgecs distill`"
        )
    return int(shape[1])


class _Cells:
    """Keys and values of the head's only layer, in two buffers."""

    def __init__(
        self, session: ort.InferenceSession, watch: Watch, room: int, width: int
    ) -> None:
        self._session, self._watch = session, watch
        self._keys = np.zeros((room, width), dtype=np.float32)
        self._values = np.zeros((room, width), dtype=np.float32)
        self._used = 0

    def run(
        self, ids: NDArray[np.int64], states: State, position: int
    ) -> tuple[NDArray[np.float32], State]:
        """Logits [1, rows] and state [1, width] after the last of the tokens [n]."""
        n, used = ids.size, self._used
        feeds = {
            "token": ids,
            "state": states,
            "position": np.arange(position, position + n),
            "mask": self._mask(n, used),
            "past_key": self._keys[:used],
            "past_value": self._values[:used],
        }
        logits, state, keys, values = self._watch(
            partial(self._session.run, _OUTPUTS, feeds)
        )
        self._keys[used : used + n] = keys
        self._values[used : used + n] = values
        self._used = used + n
        return logits, state

    def drop(self, length: int) -> int:
        """Drop the cells from `length` on; returns how many are left."""
        self._used = length
        return length

    def _mask(self, n: int, used: int) -> NDArray[np.float32]:
        """0 for what a token attends to, [n, used + n]: all but later tokens."""
        if n == 1:
            return np.zeros((1, used + 1), dtype=np.float32)
        later = np.triu(np.full((n, n), -np.inf, dtype=np.float32), 1)
        return np.hstack((np.zeros((n, used), dtype=np.float32), later))
