"""Weights in llama.cpp: opening a GGUF, offloading its layers, saying what failed.

A `LlamaModel` is the file in memory. What decodes with it is `LlamaTarget`.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import llama_cpp as lib
import psutil

from edgecs.backends import llama_library as library
from edgecs.backends.llama_vocabulary import LlamaVocabulary
from edgecs.errors import Cancelled, ModelError, OutOfMemory
from edgecs.offload import (
    Footprint,
    context_that_fits,
    fewer_layers,
    layers_that_fit,
)
from edgecs.options import LoadOptions

_MAGIC = b"GGUF"
_ALLOCATION = re.compile(r"(unable|failed) to alloc|out of memory|cannot meet", re.I)
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers")
_BUFFER = re.compile(r"load_tensors:\s+(\S+) model buffer size =\s+([\d.]+) MiB")

KV_TYPES: dict[str, int] = {
    "f32": lib.GGML_TYPE_F32,
    "f16": lib.GGML_TYPE_F16,
    "bf16": 30,  # GGML_TYPE_BF16, which the bindings do not name
    "q8_0": lib.GGML_TYPE_Q8_0,
    "q5_1": lib.GGML_TYPE_Q5_1,
    "q5_0": lib.GGML_TYPE_Q5_0,
    "q4_1": lib.GGML_TYPE_Q4_1,
    "q4_0": lib.GGML_TYPE_Q4_0,
    "iq4_nl": lib.GGML_TYPE_IQ4_NL,
}
# Bytes for a value of the KV cache: whole blocks of 32 values, with their scales.
_KV_BYTES = {
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


@dataclass(frozen=True)
class Offload:
    """Where llama.cpp says it put the weights."""

    layers: int  # on accelerators; 0 without one
    total: int  # layers there are, the output matrix counted as one
    buffers: dict[str, float]  # MiB by buffer name, as logged (CPU_Mapped, CUDA0, ...)
    note: str | None = None  # what automatic offloading decided, if it did


class LlamaModel:
    """A GGUF held by llama.cpp. Close it after everything that uses it.

    Raises ModelError for a file that is missing or broken, OutOfMemory when weights
    do not fit, Cancelled when `cancel` is set while loading.
    """

    def __init__(
        self, path: Path, options: LoadOptions, cancel: threading.Event
    ) -> None:
        self.path = path
        self._cancel = cancel
        _check_file(path)
        library.clear_log()
        note = retry = None
        layers = options.n_gpu_layers
        if layers == "auto":
            layers, note = _automatic_layers(path, options)
        self.handle = self._open(options, layers)
        while self.handle is None and options.n_gpu_layers == "auto" and layers:
            layers = fewer_layers(int(layers))
            retry = f"allocation failed, so {layers} are used"
            self.handle = self._open(options, layers)
        if self.handle is None:
            raise _load_error(path)
        notes = "; ".join(filter(None, (note, retry))) or None
        self.offload = _reported_offload(lib.llama_model_n_layer(self.handle), notes)
        self.vocabulary = LlamaVocabulary(self.handle)
        self.description = self._describe()
        self._refuse_what_cannot_decode()

    @property
    def trained_ctx(self) -> int:
        """Context length that the model was trained for, tokens."""
        return int(lib.llama_model_n_ctx_train(self.handle))

    @property
    def rewindable(self) -> bool:
        """Whether the last tokens can be forgotten again (not so with recurrence)."""
        recurrent = lib.llama_model_is_recurrent(self.handle)
        return not (recurrent or lib.llama_model_is_hybrid(self.handle))

    def default_ctx(self, options: LoadOptions) -> int:
        """Context size for n_ctx = 0: the trained one, as far as memory allows."""
        on_device = self.offload.layers > 0
        free = (
            sum(device.free for device in library.devices())
            if on_device
            else psutil.virtual_memory().available
        )
        handle = self.handle
        heads = lib.llama_model_n_head(handle) or 1
        width = lib.llama_model_n_embd(handle) // heads
        values = lib.llama_model_n_layer(handle) * lib.llama_model_n_head_kv(handle)
        size = _KV_BYTES[options.type_k] + _KV_BYTES[options.type_v]
        return context_that_fits(self.trained_ctx, int(values * width * size), free)

    def close(self) -> None:
        """Frees the weights; may be called again."""
        if self.handle is not None:
            lib.llama_model_free(self.handle)
            self.handle = None

    def _open(
        self, options: LoadOptions, layers: int | str
    ) -> lib.llama_model_p | None:
        params = lib.llama_model_default_params()
        params.n_gpu_layers = -1 if layers == "all" else int(layers)
        params.load_mode = (
            lib.LLAMA_LOAD_MODE_MMAP if options.mmap else lib.LLAMA_LOAD_MODE_NONE
        ) | (lib.LLAMA_LOAD_MODE_MLOCK if options.mlock else 0)
        # The callback must outlive the call: the local name keeps it alive.
        keep_going = lib.llama_progress_callback(
            lambda progress, data: not self._cancel.is_set()
        )
        params.progress_callback = keep_going
        handle = lib.llama_model_load_from_file(str(self.path).encode(), params)
        if handle is None and self._cancel.is_set():
            raise Cancelled(f"stopped while loading {self.path.name}")
        return cast(lib.llama_model_p | None, handle)

    def _describe(self) -> str:
        buffer = bytes(256)
        lib.llama_model_desc(self.handle, buffer, len(buffer))
        return buffer.split(b"\0", 1)[0].decode(errors="replace")

    def _refuse_what_cannot_decode(self) -> None:
        handle, problem = self.handle, None
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


def _check_file(path: Path) -> None:
    """The mistakes that deserve a better sentence than llama.cpp's."""
    if not path.exists():
        raise ModelError(f"there is no file {path}: check the path of the model")
    if path.is_dir():
        raise ModelError(f"{path} is a folder: give the .gguf file in it")
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if not magic:
        raise ModelError(f"{path} is empty: fetch the model again")
    if magic != _MAGIC:
        raise ModelError(
            f"{path} is not a GGUF file (it starts with {magic!r}, not {_MAGIC!r}): "
            "give a model converted for llama.cpp"
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


def _automatic_layers(path: Path, options: LoadOptions) -> tuple[int, str | None]:
    devices = library.devices() if library.supports_offload() else []
    if not devices:
        return 0, None
    footprint = _footprint(path, options)
    layers = layers_that_fit(footprint, devices)
    total = len(footprint.blocks) + 1
    names = ", ".join(f"{d.name} with {d.free >> 20} MiB free" for d in devices)
    return layers, f"{layers} of {total} layers fit {names}"


def _footprint(path: Path, options: LoadOptions) -> Footprint:
    """Bytes of each block, of the output and of a block's KV cache, from the header."""
    import gguf

    reader = gguf.GGUFReader(path)

    def number(key: str, default: int) -> int:
        field = reader.get_field(f"{architecture}.{key}")
        value = default if field is None else field.contents()
        return max(value) if isinstance(value, list) else int(value)

    named = reader.get_field("general.architecture")
    architecture = "" if named is None else named.contents()
    blocks = [0] * number("block_count", 0)
    output = embedding = 0
    for tensor in reader.tensors:
        match = re.match(r"blk\.(\d+)\.", tensor.name)
        if match and int(match[1]) < len(blocks):
            blocks[int(match[1])] += int(tensor.n_bytes)
        elif tensor.name.startswith("token_embd"):
            embedding += int(tensor.n_bytes)
        elif tensor.name.startswith("output"):
            output += int(tensor.n_bytes)
    tied = not any(tensor.name == "output.weight" for tensor in reader.tensors)
    heads = number("attention.head_count", 1)
    width = number("embedding_length", 0) // heads
    kv_heads = number("attention.head_count_kv", heads)
    tokens = options.n_ctx or number("context_length", 4096)
    kv = (
        tokens
        * kv_heads
        * (
            number("attention.key_length", width) * _KV_BYTES[options.type_k]
            + number("attention.value_length", width) * _KV_BYTES[options.type_v]
        )
    )
    return Footprint(tuple(blocks), output + embedding * tied, int(kv))


def _reported_offload(blocks: int, note: str | None) -> Offload:
    text = "\n".join(library.logged())
    counts = _OFFLOADED.search(text)
    layers, total = map(int, counts.groups()) if counts else (0, blocks + 1)
    buffers: dict[str, float] = {}
    for name, size in _BUFFER.findall(text):
        buffers[name] = buffers.get(name, 0.0) + float(size)
    return Offload(layers, total, buffers, note)
