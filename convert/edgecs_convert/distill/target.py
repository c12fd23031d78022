"""The parts of a target's file that a head uses: embeddings, last norm, sizes."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edgecs.engines.llama.heads.fit import HOOKED, Shape, header_of
from edgecs.errors import ModelError
from edgecs_convert.distill.shape import EagleShape, HeadShape

_SIZE = 64  # of an attention head
_INNER = 8 / 3  # inner width over width
_LEAST_LAYERS = 4
# chosen: 256 dimensions hold 98 % of what SmolLM2's head adds to a state of 576.
_ALONE = 2  # usual attention heads for each that attends to its own token only
_LAST = {
    "inner_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


class TargetFile:
    """A GGUF, read without loading it. Raises ModelError for other files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = gguf.GGUFReader(path)
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise ModelError(f"{path} cannot be read as a GGUF: {error}") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    @cached_property
    def license(self) -> str:
        """The value in the file."""
        return str(self._field("general.license") or "unknown")

    @property
    def width(self) -> int:
        """The width of a hidden state."""
        return int(self._table.shape[0])

    @property
    def layers(self) -> int:
        """The value in the file."""
        return int(self._architecture("block_count") or 0)

    @property
    def vocab_size(self) -> int:
        """The number of tokens, including padding."""
        return int(self._table.shape[1])

    def table(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Rows of the output matrix, float32 [ids, width]."""
        return self._floats(self._table, self._table.data[ids])

    def norm(self) -> NDArray[np.float32]:
        """Weights of the last norm, float32 [width]; ones if there are none."""
        tensor = self._tensors.get("output_norm.weight")
        if tensor is None:
            return np.ones(self.width, dtype=np.float32)
        return self._floats(tensor, tensor.data).ravel()

    def embeddings(self) -> NDArray[np.float16]:
        """The embeddings of all tokens, [vocab_size, width]."""
        tensor = self._tensors.get("token_embd.weight")
        if tensor is None:
            raise ModelError(f"{self.path} has no embeddings: give a whole model")
        return self._floats(tensor, tensor.data).astype(np.float16)

    def last_layer(self, shape: EagleShape) -> dict[str, NDArray[np.float32]]:
        """The weights of its last layer that a drafter can begin with, by their names.

        They are those of the feed-forward part, matrices as [in, out], if they fit.
        """
        found = {}
        for ours, theirs in _LAST.items():
            tensor = self._tensors.get(f"blk.{self.layers - 1}.{theirs}.weight")
            if tensor is None:
                return {}
            found[ours] = self._floats(tensor, tensor.data).T
        fits = all(found[name].shape == shape.shapes()[name] for name in found)
        return found if fits else {}

    def shape(self, rows: int) -> HeadShape:
        """The shape of a head for this target. Raises ModelError if none fits."""
        return HeadShape(rows=rows, **self._sizes())

    def eagle_shape(self, rows: int) -> EagleShape:
        """The shape of an EAGLE-3 drafter. Raises ModelError if none fits.

        It reads a low, a middle and the last layer. The paper's reads the third last
        one; in a small model that is further from what the model says next.
        """
        theirs = Shape.of_file(self.path, header_of(self.path))
        unfit = f"no EAGLE-3 drafter can be made for {self.path.name}"
        if theirs.architecture not in HOOKED:
            raise ModelError(
                f"{unfit}: llama.cpp does not give the states of the layers of "
                f"{theirs.architecture} models; use --kind head"
            )
        if theirs.layers < _LEAST_LAYERS:
            raise ModelError(
                f"{unfit}: it has {theirs.layers} layers, and the drafter reads three "
                "after the first one"
            )
        if theirs.hidden != self.width:
            raise ModelError(
                f"{unfit}: its output matrix has width {self.width}, and its states "
                f"have width {theirs.hidden}; use --kind head"
            )
        count = theirs.layers
        middle = count // 2
        layers = min(2, middle - 1), middle, count - 1
        sizes = self._sizes()
        alone = max(1, sizes["heads"] // _ALONE)
        sizes["heads"] = sizes["kv_heads"] = sizes["heads"] + alone
        return EagleShape(rows=rows, layers=layers, alone=alone, **sizes)

    def _sizes(self) -> dict[str, Any]:
        """What the shapes of drafters have in common."""
        width = self.width
        if width % _SIZE:
            raise ModelError(
                f"{self.path.name} has hidden states of {width}: a head needs a "
                f"multiple of {_SIZE}"
            )
        heads = width // _SIZE
        kv_heads = max(n for n in range(1, heads // 3 + 2) if heads % n == 0)
        inner = round(width * _INNER / _SIZE) * _SIZE
        epsilon = self._architecture("attention.layer_norm_rms_epsilon") or 1e-5
        return {
            "width": width,
            "heads": heads,
            "kv_heads": kv_heads,
            "inner": inner,
            "epsilon": float(epsilon),
        }

    def tokenizer(self) -> dict[str, gguf.ReaderField]:
        """The fields about the tokenizer, by their names."""
        return {
            name: field
            for name, field in self._reader.fields.items()
            if name.startswith("tokenizer.")
        }

    @property
    def trained_ctx(self) -> int:
        """The value in the file."""
        return int(self._architecture("context_length") or 0)

    @property
    def _table(self) -> Any:
        for name in ("output.weight", "token_embd.weight"):  # the first one, if untied
            if name in self._tensors:
                return self._tensors[name]
        raise ModelError(f"{self.path} has no embeddings: give a whole model")

    def _floats(self, tensor: Any, data: NDArray[Any]) -> NDArray[np.float32]:
        try:
            floats = gguf.quants.dequantize(data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ModelError(
                f"{self.path.name} keeps {tensor.name} as {tensor.tensor_type.name}, "
                "which cannot be read here: give the model in another quantisation"
            ) from error
        return np.asarray(floats, dtype=np.float32)

    def _architecture(self, key: str) -> Any:
        return self._field(f"{self._field('general.architecture')}.{key}")

    def _field(self, key: str) -> Any:
        field = self._reader.get_field(key)
        return None if field is None else field.contents()
