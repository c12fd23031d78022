"""Weights in llama.cpp: open a GGUF, offload its layers, report errors.

A `LlamaModel` is the file in memory; `LlamaLM` decodes with it.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import llama_cpp as lib
import psutil

from edgecs.core.reading import check_model
from edgecs.engines.cell_memory import CellMemory, memory_of, most_snapshots
from edgecs.engines.gguf_header import Header, read_header
from edgecs.engines.host import usable_cores
from edgecs.engines.llama import library
from edgecs.engines.llama.huge_pages import HugePages
from edgecs.engines.llama.kernels import KernelSet, PackedWeights
from edgecs.engines.llama.metadata import Value, file_type, read_metadata
from edgecs.engines.llama.rpc import Workers
from edgecs.engines.llama.tokenizer import LlamaVocabulary
from edgecs.engines.load_options import LoadOptions
from edgecs.engines.offload import Device, context_that_fits
from edgecs.errors import Cancelled, ModelError, OutOfMemory
from edgecs.hub.download import split_parts

_MAGIC = b"GGUF"
_WITH_PLACES = (8, 40)  # llama_rope_type: M-RoPE and its interleaved variant
_ALLOCATION = re.compile(r"(unable|failed) to alloc|out of memory|cannot meet", re.I)
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers")
_BUFFER = re.compile(r"load_tensors:\s+(\S+) model buffer size =\s+([\d.]+) MiB")

HEADS = {
    "eagle3": "an EAGLE-3 drafter",
    "dflash": "a DFlash drafter",
    "gemma4-assistant": "a drafter for Gemma 4",
}
"""Architectures of files that only draft, and what they are called."""

_POOLINGS = {
    lib.LLAMA_POOLING_TYPE_MEAN: "mean",
    lib.LLAMA_POOLING_TYPE_CLS: "cls",
    lib.LLAMA_POOLING_TYPE_LAST: "last",
}
FLASH_TYPES: dict[str, int] = {
    "auto": lib.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": lib.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
KV_TYPES: dict[str, int] = {
    "f32": lib.GGML_TYPE_F32,
    "f16": lib.GGML_TYPE_F16,
    "bf16": 30,  # GGML_TYPE_BF16, which the bindings do not define
    "q8_0": lib.GGML_TYPE_Q8_0,
    "q5_1": lib.GGML_TYPE_Q5_1,
    "q5_0": lib.GGML_TYPE_Q5_0,
    "q4_1": lib.GGML_TYPE_Q4_1,
    "q4_0": lib.GGML_TYPE_Q4_0,
    "iq4_nl": lib.GGML_TYPE_IQ4_NL,
}


@dataclass(frozen=True)
class Offload:
    """Location of the weights, as reported by llama.cpp."""

    layers: int  # on accelerators; 0 without one
    total: int  # all layers; the output matrix counts as one
    buffers: dict[str, float]  # MiB by buffer name, as logged (CPU_Mapped, CUDA0, ...)
    software: bool = False  # whether the accelerators are drivers that use the CPU
    workers: str = ""  # those that have layers, as in `LoadOptions.rpc`

    @property
    def device(self) -> str:
        """What the layers are on."""
        if self.workers:
            return self.workers.replace(",", ", ")
        return "software GPU" if self.software else "GPU"

    def describe(self) -> str:
        """The beginning of a list of what a model runs on; empty without layers."""
        if not self.layers:
            return ""
        return f"{self.layers}/{self.total} layers on {self.device}, "


class EmbeddingModel(ModelError):
    """A model for embeddings, where one that writes text is needed."""


class LlamaModel:
    """A GGUF loaded by llama.cpp. Close it after everything that uses it.

    options: n_gpu_layers must be a number or "all"; "auto" is resolved in `layers`.
    kernels: the kernels to use, regardless of the options; None: llama.cpp's. embeds:
    whether it is opened for embeddings. head: whether it is a head, which needs a
    target. beside_gpu: whether that target has layers on a GPU, whose tensors the head
    may use.

    Raises ModelError for a missing or broken file, EmbeddingModel for a file of the
    other kind, OutOfMemory if the weights do not fit, Cancelled if `cancel` is set
    while loading, and WorkerError if a worker of the options cannot be used.
    """

    def __init__(
        self,
        path: Path,
        options: LoadOptions,
        cancel: threading.Event,
        kernels: KernelSet | None = None,
        *,
        embeds: bool = False,
        head: bool = False,
        beside_gpu: bool = False,
    ) -> None:
        self.path = path
        self.kernels, self.packed = kernels, cast(PackedWeights | None, None)
        self._cancel = cancel
        self._has_heads, self._beside_gpu = options.heads, beside_gpu
        check_file(path)
        self.workers = Workers(options.rpc) if options.rpc else None
        library.clear_log()
        self.handle = self._open(options)
        if self.is_lost:
            self._drop()
        if self.handle is None:
            raise _load_error(path)
        self.offload = self._reported_offload(options)
        self.vocabulary = LlamaVocabulary(self.handle)
        self.description = self._describe()
        if not head:
            self._refuse_what_cannot_decode(embeds)
        if kernels:
            threads = options.threads or usable_cores()
            self.packed = PackedWeights(kernels, threads, self._goes_on)

    def _goes_on(self, packed: int) -> bool:
        return not self._cancel.is_set()

    @property
    def size(self) -> int:
        """Bytes of its weights."""
        return int(lib.llama_model_size(self.handle))

    @property
    def trained_ctx(self) -> int:
        """Context length of the model's training, in tokens."""
        return int(lib.llama_model_n_ctx_train(self.handle))

    @property
    def layers(self) -> int:
        """Number of its layers, without MTP heads."""
        return int(lib.llama_model_n_layer(self.handle))

    @property
    def has_heads(self) -> bool:
        """Whether the MTP heads of its file are loaded, if it has some."""
        return self._has_heads and int(lib.llama_model_n_layer_nextn(self.handle)) > 0

    @property
    def rewindable(self) -> bool:
        """Whether the last tokens can be removed (not in recurrent models)."""
        recurrent = lib.llama_model_is_recurrent(self.handle)
        return not (recurrent or lib.llama_model_is_hybrid(self.handle))

    @property
    def attends(self) -> bool:
        """Whether some of its layers have a cell for every token."""
        return not lib.llama_model_is_recurrent(self.handle)

    @property
    def has_places(self) -> bool:
        """Whether a cell has also a place in an image."""
        return int(lib.llama_model_rope_type(self.handle)) in _WITH_PLACES

    @property
    def window(self) -> int:
        """Tokens that some of its layers attend to; 0: all attend to all tokens."""
        return int(lib.llama_model_n_swa(self.handle))

    @property
    def swa(self) -> bool:
        """Whether some of its layers attend to a window of the context only."""
        return self.window > 0

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return int(lib.llama_model_n_params(self.handle))

    @property
    def metadata(self) -> Mapping[str, Value]:
        """The keys of its file, without the vocabulary, arrays and long texts."""
        return read_metadata(self.handle)

    @property
    def file_type(self) -> str:
        """The name of the types of its weights, such as Q4_K_M."""
        return file_type(self.handle)

    def memory(self, options: LoadOptions) -> CellMemory:
        """What its layers need for the tokens of a context."""
        try:
            return memory_of(self._header, options)
        except (OSError, ValueError):  # replaced since it was loaded
            return CellMemory(())

    @cached_property
    def _header(self) -> Header:
        return read_header(self.path)

    def snapshots(self, options: LoadOptions) -> int:
        """How many states of recurrent layers are kept for removing tokens."""
        memory = self.memory(options)
        return most_snapshots(self.architecture, memory, options, self.size)

    @property
    def pooling(self) -> str | None:
        """How an embedding model pools the states of a text; None: it writes text."""
        return _POOLINGS.get(self._number("pooling_type", 0))

    def default_ctx(self, options: LoadOptions) -> int:
        """Context size for n_ctx = 0: the longest one, as far as memory allows."""
        host, on_devices = self._free()
        free = (on_devices if self.offload.layers else host) // options.sequences
        fitting = self.memory(options).fits(free // 2, options, self.snapshots(options))
        return context_that_fits(options.longest_ctx(self.trained_ctx), fitting)

    def kv_fits(self, n_ctx: int, options: LoadOptions) -> bool:
        """Whether the cells and states of all sequences fit the free memory.

        n_ctx: tokens of each. This is checked before llama.cpp allocates: with memory
        overcommit, a process that uses too much is killed.
        """
        return self.kv_bytes(n_ctx, options) <= sum(self._free())

    def kv_bytes(self, n_ctx: int, options: LoadOptions) -> int:
        """Bytes of the cells and states of all sequences, of `n_ctx` tokens each."""
        kept = self.snapshots(options)
        return self.memory(options).size(n_ctx, options, kept) * options.sequences

    def _devices(self) -> list[Device]:
        """The devices that its layers may be on."""
        return [*(self.workers.devices if self.workers else ()), *library.devices()]

    def _free(self) -> tuple[int, int]:
        """Free bytes in the host's memory, and on the devices in use."""
        devices = self._devices() if self.offload.layers else []
        on_devices = sum(device.free for device in devices)
        return int(psutil.virtual_memory().available), on_devices

    @property
    def is_lost(self) -> bool:
        """Whether it cannot be used any more, as a worker with its layers was lost."""
        return self.workers is not None and self.workers.is_lost

    def check_workers(self) -> None:
        """Raises WorkerError if a worker was lost: results since then are not real."""
        if self.workers is not None:
            self.workers.check()

    def close(self) -> None:
        """Frees the weights; may be called again."""
        if self.handle is not None:
            self.vocabulary.closed = True
            lib.llama_model_free(self.handle)
            self.handle = None
            if self.packed:
                self.packed.close()

    @cached_property
    def architecture(self) -> str:
        """The family as llama.cpp names it, such as qwen35."""
        return self._metadata("general.architecture")

    def _number(self, key: str, default: int) -> int:
        """A number of the architecture from the file's metadata."""
        text = self._metadata(f"{self.architecture}.{key}")
        return int(text) if text.isdigit() else default

    def _metadata(self, key: str) -> str:
        buffer = bytes(128)
        lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.split(b"\0", 1)[0].decode(errors="replace")

    def _open(self, options: LoadOptions) -> lib.llama_model_p | None:
        params = lib.llama_model_default_params()
        # edgecs' kernels read the weights in the layout of the file.
        params.use_extra_bufts = options.repack and not self.kernels
        params.load_mtp = self._has_heads
        layers = options.n_gpu_layers
        params.n_gpu_layers = -1 if layers == "all" else int(layers)
        # llama.cpp otherwise sends long batches to a GPU that holds no layer, and packs
        # no weights for the CPU.
        no_devices = (ctypes.c_void_p * 1)()  # must outlive the call
        if layers == 0 and not self._beside_gpu:
            params.devices = ctypes.addressof(no_devices)
        if self.workers:
            with_workers = self.workers.with_gpus()
            params.devices = ctypes.addressof(with_workers)
        params.load_mode = (
            lib.LLAMA_LOAD_MODE_MMAP if options.mmap else lib.LLAMA_LOAD_MODE_NONE
        ) | (lib.LLAMA_LOAD_MODE_MLOCK if options.mlock else 0)
        pages, asked = HugePages(options.huge_pages), False

        def keep_going(progress: float, data: object) -> bool:
            nonlocal asked
            if not asked:  # memory is allocated, weights are not read yet
                asked = True
                pages.ask()
            return not self._cancel.is_set()

        # The callback must outlive the call: the local name keeps it alive.
        callback = lib.llama_progress_callback(keep_going)
        params.progress_callback = callback
        handle = lib.llama_model_load_from_file(os.fsencode(self.path), params)
        if handle is None and self._cancel.is_set():
            raise Cancelled(f"stopped while loading {self.path.name}")
        return cast(lib.llama_model_p | None, handle)

    def _drop(self) -> None:
        """Free what was loaded with a worker that was lost. Raises WorkerError."""
        if self.handle is not None:
            lib.llama_model_free(self.handle)
        self.check_workers()

    def _reported_offload(self, options: LoadOptions) -> Offload:
        lines = library.logged()
        if self.workers:
            lines = [self.workers.named(line) for line in lines]
        blocks = lib.llama_model_n_layer(self.handle)
        return _offload(lines, blocks, self._devices(), options.rpc)

    def _describe(self) -> str:
        buffer = bytes(256)
        lib.llama_model_desc(self.handle, buffer, len(buffer))
        return buffer.split(b"\0", 1)[0].decode(errors="replace")

    def _refuse_what_cannot_decode(self, embeds: bool) -> None:
        handle, problem = self.handle, None
        if kind := HEADS.get(self.architecture):
            self.close()
            raise ModelError(
                f"{self.path.name} is {kind}, which cannot answer by itself: give the "
                "model that it was made for with -m, and this file with --draft"
            )
        if lib.llama_model_has_encoder(handle):
            problem = "is an encoder-decoder model"
        elif not lib.llama_model_has_decoder(handle):
            problem = "has no decoder (an embedding model?)"
        elif self.vocabulary.size == 0:
            problem = "has no vocabulary"
        if problem:
            self.close()
            raise ModelError(
                f"{self.path} {problem}: edgecs runs decoder-only language models"
            )
        pooling = self.pooling
        if embeds == (pooling is not None):
            return
        self.close()
        if embeds:
            raise ModelError(
                f"{self.path} is not an embedding model: it states no pooling"
            )
        raise EmbeddingModel(
            f"{self.path} is an embedding model (pooling: {pooling}), which writes no "
            "text: `edgecs serve` answers /v1/embeddings with it"
        )


def check_file(path: Path) -> None:
    """Raise ModelError for common mistakes, with better messages than llama.cpp's."""
    check_model(path)
    for part in split_parts(path.name)[1:]:
        check_model(path.with_name(part))
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if not magic:
        raise ModelError(f"{path} is empty: fetch the model again")
    if magic != _MAGIC:
        raise ModelError(
            f"{path} is not a GGUF file (it starts with the bytes {magic.hex(' ')}, "
            "not with GGUF): give a model converted for llama.cpp"
        )


def _load_error(path: Path) -> ModelError | OutOfMemory:
    lines = library.logged_errors()
    if any(_ALLOCATION.search(line) for line in lines):
        return OutOfMemory(
            f"{path.name} does not fit into memory: use fewer GPU layers (-ngl), a "
            "smaller context (-c) or a smaller quantisation"
        )
    causes = [line.split("error loading model: ")[-1] for line in lines]
    informative = [cause for cause in causes if "failed to load model" not in cause]
    why = (informative or ["llama.cpp gives no reason"])[-1]
    return ModelError(
        f"{path} cannot be loaded: {why} (if the file is damaged, fetch it again)"
    )


def _offload(
    lines: Sequence[str], blocks: int, devices: Sequence[Device], workers: str
) -> Offload:
    text = "\n".join(lines)
    counts = _OFFLOADED.search(text)
    layers, total = map(int, counts.groups()) if counts else (0, blocks + 1)
    if not devices:  # with the RPC backend llama.cpp logs what it was asked for
        layers = 0
    buffers: dict[str, float] = {}
    for name, size in _BUFFER.findall(text):
        buffers[name] = buffers.get(name, 0.0) + float(size)
    software = bool(layers) and all(device.software for device in devices)
    return Offload(layers, total, buffers, software, workers if layers else "")
