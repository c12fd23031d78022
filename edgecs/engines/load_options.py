"""Load options of a model: all that its logits, speed and memory use depend on."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from edgecs.engines.workers.addresses import parse_addresses
from edgecs.errors import ConfigError

KVType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
GpuLayers = int | Literal["auto", "all"]
FlashAttention = Literal["auto", "on", "off"]
KernelChoice = Literal[
    "auto",
    "own",
    "llama",
    "avx512bf16",
    "avx512",
    "avxvnni",
    "avx2",
    "i8mm",
    "dotprod",
    "portable",
]

Effect = Literal["bits", "time", "none"]
"""Effect of an option on calls. "bits": on logits and cells, and so also on time."""
_BITS, _TIME, _NONE = ({"effect": effect} for effect in get_args(Effect))

MOST_THREADS = 512  # with more, ggml aborts the process
MOST_SEQUENCES = 256  # limit of llama.cpp; every leaf uses one
# chosen: beyond any memory, so that a mistyped number is rejected.
MOST_CELLS, MOST_TOGETHER = 1 << 30, 1 << 16  # of a context; tokens in a prefill chunk


@dataclass(frozen=True)
class LoadOptions:
    """Load options; names and meanings are those of llama.cpp's flags.

    A field's metadata gives its effect: whether measurements depend on the option.

    n_ctx: tokens, 0: the trained length, as far as memory allows. threads: 0: one per
    physical core. n_batch: tokens in a prefill chunk. max_draft: most draft tokens that
    one call can verify. repack: repack weights for faster kernels; the exact widths can
    depend on it. huge_pages: request huge pages; they only affect the speed.
    cpu_strict: pin each thread to a core if there are as many cores as threads, which
    reduces the slowdown by other programs. kernels: the CPU kernels: llama.cpp's,
    edgecs' for an instruction set, "own": edgecs' for the best one of this CPU, "auto":
    edgecs' where available if no layer is offloaded. sequences: number of conversations
    with KV cells at once, each with n_ctx cells. leaves: most leaves of a draft, 1:
    drafts are chains; with more, all cells share one buffer. most_ctx: limit of n_ctx
    where that is 0; 0: none. swa_full: keep all cells in layers that attend to a
    sliding window, instead of those of the window. heads: load the MTP heads of the
    file, if it has some. rpc: workers that hold layers beside or instead of the GPU, as
    HOST:PORT separated by commas, see `engines.workers`; "": none.
    """

    n_ctx: int = field(default=0, metadata=_NONE)
    n_gpu_layers: GpuLayers = field(default="auto", metadata=_BITS)
    threads: int = field(default=0, metadata=_BITS)
    flash_attention: FlashAttention = field(default="auto", metadata=_BITS)
    type_k: KVType = field(default="f16", metadata=_BITS)
    type_v: KVType = field(default="f16", metadata=_BITS)
    repack: bool = field(default=True, metadata=_BITS)
    mmap: bool = field(default=True, metadata=_TIME)
    mlock: bool = field(default=False, metadata=_NONE)
    huge_pages: bool = field(default=True, metadata=_TIME)
    cpu_strict: bool = field(default=True, metadata=_NONE)
    kernels: KernelChoice = field(default="auto", metadata=_BITS)
    n_batch: int = field(default=512, metadata=_BITS)
    max_draft: int = field(default=63, metadata=_NONE)
    sequences: int = field(default=1, metadata=_NONE)
    leaves: int = field(default=1, metadata=_BITS)
    most_ctx: int = field(default=0, metadata=_NONE)
    swa_full: bool = field(default=False, metadata=_BITS)
    heads: bool = field(default=True, metadata=_NONE)
    rpc: str = field(default="", metadata=_BITS)

    def __post_init__(self) -> None:
        for name, least, most in (
            ("n_ctx", 0, MOST_CELLS),
            ("most_ctx", 0, MOST_CELLS),
            ("threads", 0, MOST_THREADS),
            ("n_batch", 1, MOST_TOGETHER),
            ("sequences", 1, MOST_SEQUENCES),
            ("leaves", 1, MOST_SEQUENCES // max(1, self.sequences)),
        ):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"{name} must be between {least} and {most}, got "
                    f"{getattr(self, name)}"
                )
        if not 0 <= self.max_draft < self.n_batch:
            raise ConfigError(
                f"max_draft must be between 0 and {self.n_batch - 1} (the batch less "
                f"one token), got {self.max_draft}"
            )
        layers = self.n_gpu_layers
        if layers not in ("auto", "all") and not (
            isinstance(layers, int) and layers >= 0
        ):
            raise ConfigError(
                f"GPU layers must be a number >= 0, 'auto' or 'all', got {layers!r}"
            )
        workers = parse_addresses(self.rpc)
        object.__setattr__(self, "rpc", ",".join(map(str, workers)))
        if self.kernels not in get_args(KernelChoice):
            known = ", ".join(get_args(KernelChoice))
            raise ConfigError(f"kernels {self.kernels!r} are unknown: use {known}")
        for kind in (self.type_k, self.type_v):
            if kind not in get_args(KVType):
                known = ", ".join(get_args(KVType))
                raise ConfigError(f"KV type {kind!r} is unknown: use one of {known}")
        quantised = self.type_v not in ("f32", "f16", "bf16")
        if quantised and self.flash_attention == "off":
            raise ConfigError(
                f"a {self.type_v} V cache needs flash attention: drop --flash-attn off "
                "or use -ctv f16"
            )

    def longest_ctx(self, trained: int) -> int:
        """The context size for n_ctx = 0 with enough memory, in tokens."""
        return min(trained, self.most_ctx or trained)

    def having(self, *effects: Effect) -> dict[str, Any]:
        """The options with one of these effects, by name."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.metadata["effect"] in effects
        }
