"""DFlash and DSpark drafters in a GGUF: a block of tokens in one call.

Cells are filled from the inputs of some of the target's layers, without tokens. A draft
is one call of the last token and masks, each of which sees all the others; row i says
the token of its place (block diffusion, arXiv 2602.06036). DSpark adds a small chain
over the block's tokens, and its first row already says the next token.
"""

from __future__ import annotations

import threading

import llama_cpp as lib
import numpy as np

from edgecs.core.context import Tokens
from edgecs.engines.gguf_header import Header
from edgecs.engines.hidden_states import State
from edgecs.engines.llama.heads.cells import CHUNK
from edgecs.engines.llama.heads.features import LayerInputs
from edgecs.engines.llama.heads.fit import Shape, check_fit, damaged, header_of
from edgecs.engines.llama.heads.llama_head import LlamaHead, resized
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.state_head import Output
from edgecs.errors import Cancelled, ModelError

NAME = "DFlash"
_NO_STATE: State = np.empty((0, 0), dtype=np.float32)
_BLOCK = 16  # llama.cpp's default


class DFlash(LlamaHead):
    """Proposes a block of tokens at once; deeper ones take no further time.

    model: of the drafter, which is closed with it if it `owns` it. target: must outlive
    it. sequence: of the target, whose conversation it drafts for. Raises ModelError if
    the two do not fit, OutOfMemory.
    """

    def __init__(
        self,
        model: LlamaModel,
        target: LlamaLM,
        cancel: threading.Event,
        *,
        threads: int,
        strict: bool = True,
        sequence: int = 0,
        owns: bool = True,
    ) -> None:
        header = header_of(model.path)
        fit = check_fit(NAME, model.path, header, Shape.of_model(target.model))
        block, self._skipped = _block(model, header)
        mask = lib.llama_vocab_mask(lib.llama_model_get_vocab(model.handle))
        if not 0 <= mask < model.vocabulary.size:
            raise damaged(model.path.name, NAME, "it has no token for a mask")
        self._masks = np.full(block, mask, dtype=np.int32)
        self._rows = _NO_STATE  # logits of the places after the last read token
        self._filled = 0  # cells that exist; those of a draft do not
        window = min(target.n_ctx, model.trained_ctx)
        super().__init__(
            model,
            target,
            LayerInputs(target.handle, fit.layers, fit.hidden),
            cancel,
            n_ctx=window + block,
            width=fit.width,
            threads=threads,
            strict=strict,
            least=1,
            sequence=sequence,
            owns=owns,
        )
        self.window = window
        causal = header.own("attention.causal")
        if causal is None:
            causal = header.own("decoder_arch") == "laguna"
        self._cells.attend_to_all(not causal)

    @property
    def kind(self) -> str:
        """What such a file is called."""
        return NAME if self._skipped else "DSpark"

    def _read(
        self, tokens: Tokens, states: State, cancel: threading.Event | None
    ) -> Output:
        """Fill cells from states, then compute a block.

        The cell of token i has the states of the token before, at that one's position.
        """
        for start in range(0, tokens.size, CHUNK):
            if start and (self.cancel.is_set() or (cancel and cancel.is_set())):
                raise Cancelled("stopped while the drafter was reading")
            self._cache.expect()
            part = np.clip(states[start : start + CHUNK], -65504, 65504)
            self._cells.fill(part, self._position - 1)
            self._computed(tokens[start : start + CHUNK])
        self._filled = len(self._cache)
        block, at = self._masks.copy(), self._position - 1
        block[0] = tokens[-1]
        self._cache.expect()
        rows = self._cells.block(block, at)[self._skipped :]
        self._cells.drop(at)
        self._computed(tokens[:0])
        self._rows = resized(rows, self.vocab_size)
        return Output(self._rows[:1], _NO_STATE)

    def _step(self, token: int, state: State) -> Output:
        """The row of the next place; no token is likely after the block."""
        self._computed(np.array([token], dtype=np.int32))
        depth = len(self._cache) - self._filled
        if depth < len(self._rows):
            return Output(self._rows[depth : depth + 1], _NO_STATE)
        flat = np.zeros((1, self.vocab_size), dtype=np.float32)
        return Output(flat, _NO_STATE)

    def _drop(self, length: int) -> int:
        self._filled = min(self._filled, length)
        # The cell of a token has the position before its own.
        at = self._cache.first + self._filled - 1
        if self._filled and self._cells.drop(at):
            return length
        self._filled = 0
        return super()._drop(0)


def _block(model: LlamaModel, header: Header) -> tuple[int, int]:
    """The tokens of a block, and how many first rows say nothing of the next ones."""
    name = model.path.name
    if header.own("selector_top_k") or header.own("hyper_connection.count"):
        raise ModelError(
            f"{name} is a DFlash drafter of a kind that edgecs does not run yet (with "
            "a selector or hyper-connections): use another drafter, or --draft none"
        )
    block = header.own("block_size")
    block = _BLOCK if block is None else block
    if not isinstance(block, int) or not 1 < block <= CHUNK:
        raise damaged(name, NAME, f"its block is not 2 to {CHUNK} tokens")
    is_dspark = "markov_w1.weight" in header.tensors
    anchored = is_dspark and header.own("sample_from_anchor") is not False
    return block, 0 if anchored else 1
