"""An exported decoder in ONNX Runtime as a `LanguageModel`: a small neural drafter.

It reads at most the last `window` tokens, so its cost does not grow with the context,
and its logits are mapped to the target's ids.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import Draft, OneSequence, Request, Rows, sole_request
from edgecs.engines.kv_prefix import PrefixCache
from edgecs.engines.lease import ExclusiveUse
from edgecs.engines.onnx import providers as onnx_providers
from edgecs.engines.onnx.engine import Engine
from edgecs.engines.onnx.graph import Graph, read_graph
from edgecs.engines.onnx.id_map import IdMap
from edgecs.engines.onnx.kv_cache import (
    Call,
    Cells,
    GrowingCells,
    Logits,
    SharedCells,
    forgets,
)
from edgecs.errors import Cancelled, ModelError
from edgecs.hub.drafter_manifest import DrafterManifest, read_drafter

# chosen: rows of logits for all tokens of a call have to fit memory.
_CHUNK = 64  # tokens in one call; the engine computes a row of logits for each
# chosen: enough cells for a failure to show.
_PROBED = 16  # cells that the check at load fills


class OnnxModel(OneSequence):
    """Scores drafts with the decoder of a drafter's folder.

    provider: the chosen execution provider; provider_notes: why each preferred one was
    not chosen. beside: a model of the same folder whose graph it uses, for another
    conversation.

    Raises ModelError if the folder, the graph or the id map is invalid.
    """

    rewindable = True
    max_leaves = 1
    n_ctx = 2**31 - 1  # tokens before the window are dropped

    def __init__(
        self,
        drafter: Path | DrafterManifest,
        target_vocab_size: int,
        cancel: threading.Event,
        *,
        threads: int = 1,
        providers: Sequence[str] | None = None,
        beside: OnnxModel | None = None,
    ) -> None:
        manifest = read_drafter(drafter) if isinstance(drafter, Path) else drafter
        self.manifest = manifest
        self.vocab_size = target_vocab_size
        self.max_draft = min(_CHUNK - 1, manifest.window // 4)
        self.cancel = cancel
        self._engine: Engine = beside._engine if beside else Engine(manifest, cancel)
        with ExitStack() as undo:
            undo.callback(self._engine.close)
            cells, width = self._engine.open(
                self._prepare, threads=threads, providers=providers
            )
            self._ids = IdMap(manifest, width, target_vocab_size)
            undo.pop_all()
        self.provider = self._engine.provider
        self.provider_notes = self._engine.provider_notes
        self._cells: Cells | None = cells
        self._cache = PrefixCache(cells.drop)
        self._holder = ExclusiveUse(f"the drafter {manifest.name}")

    def score(self, requests: Sequence[Request]) -> list[Rows]:
        """Logits after the context and after every draft token, see `LanguageModel`."""
        context, draft, _, cancel = sole_request(requests)
        self._check(context, draft)
        kept = self._keep(context, len(draft))
        pending = context.tokens[self._cache.first + kept :]
        feed = np.concatenate((pending, draft.tokens)) if len(draft) else pending
        logits = self._feed(feed, 1 + len(draft), cancel)
        return [Rows(self._ids.to_target(logits), feed.size)]

    def end_turn(self, context: Context, sequence: int = 0) -> None:
        """Cuts the cache to one token short of the context, see `LanguageModel`."""
        if self._cells is not None:
            self._cache.keep(context, len(context) - 1 - self._cache.first)

    def reset(self) -> None:
        """Drop all cells, as if just loaded."""
        if self._cells is not None:
            self._cache.reset()

    def hold(self, sequence: int = 0) -> AbstractContextManager[None]:
        """Claim the model; raises ModelError for a second holder."""
        return self._holder.hold()

    def close(self) -> None:
        """Frees weights and cache; may be called again."""
        if self._cells is not None:
            self._engine.close()
            self._cells = None
            self._cache = PrefixCache(lambda length: length)

    @property
    def conversation_size(self) -> int:
        """Bytes of one conversation: its cells and its rows, once all are used."""
        return self._size

    def _prepare(
        self, session: ort.InferenceSession, provider: str
    ) -> tuple[Cells, int]:
        """Tested cells, and the width of the logits."""
        graph = read_graph(session)
        device = onnx_providers.DEVICES.get(provider, "cpu")
        window = self.manifest.window
        call = Call(
            session, graph, device, self._engine.watch, most=_CHUNK, span=window
        )
        self._size = call.size + window * sum(
            cell.heads * cell.size * np.dtype(cell.dtype).itemsize
            for cell in graph.cells
        )
        return self._fitting(call, graph), call.width

    def _fitting(self, call: Call, graph: Graph) -> Cells:
        room = min(_PROBED, self.manifest.window - 2)
        kinds: list[Cells] = (
            [SharedCells(call, graph)]
            if self.manifest.cache == "shared"
            else [GrowingCells(call, graph, masks=masks) for masks in (True, False)]
        )
        for cells in kinds[:-1]:
            # A graph may raise an error for the mask, or ignore it.
            with suppress(*onnx_providers.ENGINE_ERRORS):
                if forgets(cells, call.width, room):
                    return cells
        if forgets(kinds[-1], call.width, room):
            return kinds[-1]
        raise ModelError(
            f"the graph cannot drop cells of a {self.manifest.cache} cache: correct "
            "'cache' in its manifest or export it again"
        )

    def _check(self, context: Context, draft: Draft) -> None:
        if self._cells is None:
            raise ModelError("this drafter was closed: load it again")
        if not draft.is_chain:
            raise ModelError("ONNX drafters score chains only; this draft is a tree")
        if not len(context):
            raise ModelError("an empty context has no next token: give a prompt")
        if len(draft) > self.max_draft:
            raise ModelError(
                f"a draft of {len(draft)} tokens exceeds the {self.max_draft} that one "
                "call of this drafter can score"
            )

    def _keep(self, context: Context, drafted: int) -> int:
        """Number of cells that are kept; starts a new window where that is better."""
        cache, half = self._cache, self.manifest.window // 2
        kept = cache.keep(context, len(context) - 1 - cache.first)
        seen = len(context) - cache.first
        overflows = seen + drafted > self.manifest.window
        costs_more = seen - kept > half
        short_sighted = cache.first and seen < half // 2  # the context was cut back
        if overflows or costs_more or short_sighted:
            cache.reset(max(0, len(context) - half))
            kept = 0
        return kept

    def _feed(
        self, tokens: Tokens, rows: int, cancel: threading.Event | None
    ) -> Logits:
        """Compute `tokens` after the existing cells; returns logits of the last `rows`.

        These rows all come from the last call.
        """
        ids, start = self._ids.to_drafter(tokens), 0
        while ids.size - start > _CHUNK:
            n = min(_CHUNK, ids.size - start - rows)
            self._call(tokens[start : start + n], ids[start : start + n])
            start += n
            if self.cancel.is_set() or (cancel and cancel.is_set()):
                raise Cancelled("stopped while the drafter was reading")
        return self._call(tokens[start:], ids[start:])[-rows:]

    def _call(self, tokens: Tokens, ids: NDArray[np.int64]) -> Logits:
        assert self._cells is not None
        self._cache.expect()
        logits = self._engine.run(self._cells.run, ids)
        self._cache.extend(tokens.tolist())
        return logits
