"""Memory that a model needs for the tokens of a context, from its metadata.

A layer that attends to all tokens has a cell for each of them, one with a sliding
window only cells for the window and one call, and a recurrent layer one state, however
long the context is. Where a file leaves open which layers are which, llama.cpp decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edgecs.engines.gguf_header import Header
from edgecs.engines.load_options import LoadOptions

KV_BYTES = {  # per value in the KV cache: blocks of 32 values with their scales
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
Read = Callable[[str], Sequence[float]]
"""Values of a key of the architecture, such as "block_count"; empty: it is missing."""

_STATE_BYTES = 4  # per value of a recurrent state: always 32 bits
_MOST_BLOCKS = 512  # that llama.cpp loads
_MIB = 1 << 20
_PADDED = 256  # llama.cpp rounds up a context and a window to a multiple of this
_RECURRENT = ("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7")
# A recurrent layer in between attention layers, unless a key says otherwise.
_INTERVALS = ("qwen3next", "qwen35", "qwen35moe", "qwen4exp", "minimax-01")
# Layers with neither a cell nor a state have a feed-forward network instead.
_SINGLE_PURPOSE = ("nemotron_h", "nemotron_h_moe")
_BOTH_IN_EVERY_LAYER = ("falcon-h1",)
_NO_HEADS = (  # recurrent are the layers without key-value heads
    "jamba",
    "plamo2",
    "granitehybrid",
    "lfm2",
    "lfm2moe",
    "kimi-linear",
    "kimi-k3",
    "bailingmoe3",
    "glm5-next",
)
# Every how many layers one attends to all tokens, unless a key says otherwise: the last
# of them, or the first one.
_LAST_ATTENDS = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "cohere2": 4,
    "llama4": 4,
    "exaone4": 4,
    "exaone-moe": 4,
    "olmo2": 4,
    "plamo3": 8,
    "afmoe": 4,
    "muse-glimmer": 4,
    "mellum": 4,
}
_FIRST_ATTENDS = {"cohere2moe": 4, "laguna": 4, "smallthinker": 4}
_WINDOWS = {"gemma2": 4096, "exaone-moe": 128, "exaone4": 4096, "llama4": 8192}
# Those whose kernels write the states of the last tokens of a call.
_WITH_SNAPSHOTS = (
    "kimi-k3",
    "qwen35",
    "qwen35moe",
    "qwen4exp",
    "glm5-next",
    "nemotron_h",
    "nemotron_h_moe",
    "lfm2",
    "lfm2moe",
    "bailingmoe3",
)
# chosen: longer drafts are seldom accepted, and cost another call if they are not.
MOST_SNAPSHOTS = 15
# chosen: memory that a small model may take; for larger ones, few weights' worth.
_SNAPSHOT_ROOM, _SNAPSHOT_SHARE = 256 << 20, 16  # bytes; one part in so many
_GEMMA3N_OWN = 20  # layers with cells; later ones use those of an earlier layer


class Needs(NamedTuple):
    """Bytes of one layer: per cell, and of its recurrent state."""

    cell: float = 0.0
    state: int = 0
    windowed: bool = False


@dataclass(frozen=True)
class CellMemory:
    """What the layers of a model need, first to last; window: in tokens, 0: none."""

    layers: tuple[Needs, ...]
    window: int = 0

    @property
    def per_token(self) -> float:
        """Bytes that one more token of context adds, beyond the window."""
        return sum(one.cell for one in self.layers if not one.windowed)

    @property
    def state(self) -> int:
        """Bytes of the recurrent state of one sequence."""
        return sum(one.state for one in self.layers)

    def window_cells(self, n_ctx: int, options: LoadOptions) -> int:
        """Cells of a windowed layer; those of all tokens if they have to be kept."""
        cells = _padded(n_ctx)
        if not self.window or options.swa_full or options.leaves > 1 or self.state:
            return cells
        return min(cells, _padded(min(cells, self.window + options.n_batch)))

    def layer_bytes(
        self, n_ctx: int, options: LoadOptions, snapshots: int = 0
    ) -> list[float]:
        """Bytes of every layer for a sequence of `n_ctx` tokens."""
        cells, few = _padded(n_ctx), self.window_cells(n_ctx, options)
        return [
            one.cell * (few if one.windowed else cells) + one.state * (1 + snapshots)
            for one in self.layers
        ]

    def size(self, n_ctx: int, options: LoadOptions, snapshots: int = 0) -> int:
        """Bytes of a sequence of `n_ctx` tokens."""
        return int(sum(self.layer_bytes(n_ctx, options, snapshots)))

    def describe(self, n_ctx: int, options: LoadOptions, snapshots: int = 0) -> str:
        """The memory of a context of this size in words."""
        whole = self.size(n_ctx, options, snapshots)
        parts = [f"{self.per_token / 1024:.1f} KiB for each token"]
        windowed = [one for one in self.layers if one.windowed]
        cells = self.window_cells(n_ctx, options)
        if windowed and cells < _padded(n_ctx):
            parts.append(f"{len(windowed)} layers keep {cells} tokens")
        if self.state:
            kept = f" and {snapshots} snapshots" if snapshots else ""
            parts.append(f"{self.state / _MIB:.1f} MiB for each state{kept}")
        said = f"{whole / _MIB:.1f} MiB for {n_ctx} tokens ({'; '.join(parts)})"
        if options.sequences > 1:
            said += f", {options.sequences} times"
        return said

    def fits(self, free: int, options: LoadOptions, snapshots: int = 0) -> int:
        """The most tokens whose cells have this many bytes together."""
        least, most = 0, 1 << 30
        while least < most:
            middle = (least + most + 1) // 2
            if self.size(middle, options, snapshots) <= free:
                least = middle
            else:
                most = middle - 1
        return least


def memory_of(header: Header, options: LoadOptions) -> CellMemory:
    """The memory needs of a file. Raises ValueError for impossible numbers."""
    name = header.architecture

    def read(key: str) -> Sequence[float]:
        return header.numbers.get(f"{name}.{key}", [])

    blocks = int(max(read("block_count"), default=0))
    return memory_by_keys(name, blocks, read, options)


def memory_by_keys(
    architecture: str, blocks: int, read: Read, options: LoadOptions
) -> CellMemory:
    """The memory needs of a model with this many layers.

    blocks: all of them, including those for multi-token prediction, which plain
    decoding does not use. Raises ValueError for impossible numbers.
    """
    if blocks > _MOST_BLOCKS:
        raise ValueError(f"{blocks} layers are more than llama.cpp loads")
    return _Reader(architecture, blocks, read, options).memory()


def most_snapshots(
    architecture: str, memory: CellMemory, options: LoadOptions, weights: int
) -> int:
    """How many snapshots of the recurrent states llama.cpp is asked to keep.

    They allow a rejected draft to be removed at no cost, for some architectures. They
    may take a small share of the memory of the weights, given in bytes.
    """
    if architecture not in _WITH_SNAPSHOTS or not memory.state:
        return 0
    room = max(_SNAPSHOT_ROOM, weights // _SNAPSHOT_SHARE)
    fitting = room // (memory.state * options.sequences)
    return min(fitting, MOST_SNAPSHOTS, options.max_draft)


class _Reader:
    def __init__(
        self, architecture: str, blocks: int, read: Read, options: LoadOptions
    ) -> None:
        self._arch, self._read = architecture, read
        self._blocks = blocks
        self._trunk = blocks - self._number("nextn_predict_layers", 0)
        self._key = KV_BYTES[options.type_k]
        self._value = KV_BYTES[options.type_v]

    def memory(self) -> CellMemory:
        window = self._number("attention.sliding_window", _WINDOWS.get(self._arch, 0))
        layers = [self._layer(i, window) for i in range(self._blocks)]
        return CellMemory(tuple(layers), window if self._any_windowed(layers) else 0)

    @staticmethod
    def _any_windowed(layers: Sequence[Needs]) -> bool:
        return any(one.windowed for one in layers)

    def _layer(self, i: int, window: int) -> Needs:
        if i >= self._trunk or i >= self._with_cells():
            return Needs()
        recurrent = self._is_recurrent(i)
        state = self._state() if recurrent else 0
        if (recurrent and self._arch not in _BOTH_IN_EVERY_LAYER) or (
            self._arch in _SINGLE_PURPOSE and self._number("feed_forward_length", 0, i)
        ):
            return Needs(state=state)
        windowed = bool(window) and self._is_windowed(i)
        return Needs(self._cell(i, windowed), state, windowed)

    def _with_cells(self) -> int:
        """Layers with cells of their own; later ones use those of earlier layers."""
        if self._arch == "gemma3n":
            return _GEMMA3N_OWN
        return self._blocks - self._number("attention.shared_kv_layers", 0)

    def _is_recurrent(self, i: int) -> bool:
        if self._arch in (*_RECURRENT, *_BOTH_IN_EVERY_LAYER):
            return True
        if self._arch in _INTERVALS:
            if self._read("attention.recurrent_layers"):
                return bool(self._number("attention.recurrent_layers", 0, i))
            return (i + 1) % (self._number("full_attention_interval", 4) or 1) != 0
        if self._arch in _SINGLE_PURPOSE:
            return not (
                self._number("attention.head_count_kv", 0, i)
                or self._number("feed_forward_length", 0, i)
            )
        return self._arch in _NO_HEADS and not self._number(
            "attention.head_count_kv", 0, i
        )

    def _is_windowed(self, i: int) -> bool:
        name = "attention.sliding_window_pattern"
        if len(self._read(name)) > 1:
            return bool(self._number(name, 0, i))
        first = self._arch in _FIRST_ATTENDS
        usual = (_FIRST_ATTENDS if first else _LAST_ATTENDS).get(self._arch, 1)
        if self._arch in ("lfm2", "lfm2moe"):
            return True
        every = self._number(name, usual)
        if not every:
            return True
        return i % every != 0 if first else i % every < every - 1

    def _cell(self, i: int, windowed: bool) -> float:
        heads = self._number("attention.head_count", 1)
        kv_heads = self._number("attention.head_count_kv", heads, i)
        width = self._number("embedding_length", 0) // (heads or 1)
        key = self._number("attention.key_length", width)
        value = self._number("attention.value_length", width)
        if windowed:
            key = self._number("attention.key_length_swa", key)
            value = self._number("attention.value_length_swa", value)
        if self._read("attention.key_length_mla"):
            value = 0  # values are a part of the keys
        return kv_heads * (key * self._key + value * self._value)

    def _state(self) -> int:
        """Bytes of a recurrent layer: the last inputs of its convolution, its state."""
        width = self._number("embedding_length", 0)
        if head := self._number("wkv.head_size", 0):
            shifts = self._number("token_shift_count", 2)
            return _STATE_BYTES * (shifts * width + width * head)
        if taps := self._number("shortconv.l_cache", 0):
            return _STATE_BYTES * width * (taps - 1)
        taps = max(0, self._number("ssm.conv_kernel", 0) - 1)
        if head := self._number("kda.head_dim", 0):
            inner = self._number("attention.head_count", 0) * head
            return _STATE_BYTES * (3 * (taps or 3) * inner + inner * head)
        inner, states = (
            self._number("ssm.inner_size", 0),
            self._number("ssm.state_size", 0),
        )
        mixed = inner + 2 * self._number("ssm.group_count", 0) * states
        return _STATE_BYTES * (taps * mixed + inner * states)

    def _number(self, key: str, default: int, layer: int = 0) -> int:
        """A number, or that of a layer if there is one for each."""
        values = self._read(key)
        if not values:
            return default
        return max(0, int(values[min(layer, len(values) - 1)]))


def _padded(cells: int) -> int:
    return -(-cells // _PADDED) * _PADDED
