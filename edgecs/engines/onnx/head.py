"""A head in ONNX Runtime as a `LanguageModel`: one layer on the target's hidden states.

See `state_head`, which has all but the computation of cells.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgecs.core.context import Tokens
from edgecs.engines.hidden_states import State, States
from edgecs.engines.onnx.engine import Engine
from edgecs.engines.onnx.graph import is_size
from edgecs.engines.onnx.id_map import IdMap
from edgecs.engines.onnx.watchdog import Watch
from edgecs.engines.state_head import Output, StateHead
from edgecs.errors import ModelError
from edgecs.hub.drafter_manifest import DrafterManifest, read_drafter

# chosen: as many as heads are trained with (`edgecs_convert.distill.recipe`).
_BEFORE = 32  # tokens before the first known state that are read without one
_INPUTS = {"token", "state", "position", "mask", "past_key", "past_value"}
_OUTPUTS = ["logits", "next_state", "key", "value"]


class OnnxHead(StateHead):
    """Proposes tokens from the hidden states that a target records.

    states: of the target; tokens without a known state are read with zeros. provider
    and provider_notes: see `OnnxModel`. beside: a head of the same folder whose graph
    it uses, for another conversation. Raises ModelError for an invalid folder or graph,
    or a head made for a target with states of another width.
    """

    def __init__(
        self,
        drafter: Path | DrafterManifest,
        states: States,
        target_vocab_size: int,
        cancel: threading.Event,
        *,
        threads: int = 1,
        providers: Sequence[str] | None = None,
        beside: OnnxHead | None = None,
    ) -> None:
        manifest = read_drafter(drafter) if isinstance(drafter, Path) else drafter
        self.manifest = manifest
        super().__init__(
            manifest.name,
            states,
            target_vocab_size,
            cancel,
            window=manifest.window,
            before=_BEFORE,
        )
        self._cells: _Cells | None = None
        self._engine: Engine = beside._engine if beside else Engine(manifest, cancel)
        with ExitStack() as undo:
            undo.callback(self._free)
            cells, rows, width = self._engine.open(
                self._prepare, threads=threads, providers=providers
            )
            self._check_width(width)
            self._ids = IdMap(manifest, rows, target_vocab_size, spare=1)
            undo.pop_all()
        self.provider = self._engine.provider
        self.provider_notes = self._engine.provider_notes
        self._cells = cells

    def _read(
        self, tokens: Tokens, states: State, cancel: threading.Event | None
    ) -> Output:
        assert self._cells is not None
        position = self._cache.first + len(self._cache)
        ids = self._ids.to_drafter(tokens)
        self._cache.expect()
        logits, state = self._engine.run(self._cells.run, ids, states, position)
        self._computed(tokens)
        return Output(self._ids.to_target(logits), state)

    def _step(self, token: int, state: State) -> Output:
        return self._read(np.array([token], dtype=np.int32), state, None)

    def _drop(self, length: int) -> int:
        return self._cells.drop(length) if self._cells else 0

    @property
    def conversation_size(self) -> int:
        """Bytes of one conversation: its cells and its states."""
        return self._states.size + (self._cells.size if self._cells else 0)

    def _free(self) -> None:
        self._engine.close()
        self._cells = None

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

    @property
    def size(self) -> int:
        """Bytes of both buffers."""
        return self._keys.nbytes + self._values.nbytes

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
