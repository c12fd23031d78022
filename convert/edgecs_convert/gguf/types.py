"""Converts a GGUF to other types with llama.cpp's quantiser.

A quantised file can be quantised again. That suffices to compare speeds, but the
quality is that of the worse of the two types, which callers must report.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from edgecs.calibrate.profile import fingerprint
from edgecs.core.reading import reason
from edgecs.engines.llama.library import clear_log, logged_errors
from edgecs.engines.llama.model_trial import refuse_fatal
from edgecs.errors import ConfigError, ModelError
from edgecs.tuning.quantisations import quantisation

_MOSTLY, _ALL = "LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_"
_MIXED = ("MXFP4_MOE", "NVFP4")  # kinds of files that the quantiser does not make
TYPES: dict[str, int] = {
    name.removeprefix(_MOSTLY).removeprefix(_ALL).lower(): value
    for name, value in vars(lib).items()
    if name.startswith((_MOSTLY, _ALL)) and not name.endswith(_MIXED)
}
"""llama.cpp's types of whole files by name, in lower case."""

_PLAIN = {"F32", "F16", "BF16", "F64"}
_TEXT = 3  # llama_model_kv_override_type
_LONGEST = 127  # bytes of a key or a text there


class Variant(NamedTuple):
    """A file that was made from another one."""

    path: Path
    kind: str
    size: int  # bytes
    bits: float  # a weight
    source: str | None  # quantisation of the source; None: plain weights


def variant_path(model: Path, folder: Path, kind: str) -> Path:
    """The path of a variant of a model."""
    name, _ = quantisation(model.stem)
    return folder / f"{name}-{kind}.gguf"


def make(
    model: Path, folder: Path, kind: str, *, imatrix: Path | None = None
) -> Variant:
    """Makes a variant; a file that is already there is kept.

    The metadata records the source: `edgecs.source`, `.source_fingerprint`,
    `.requantised_from`, `.imatrix`. An interrupted run leaves no partial file under the
    name. Raises ConfigError for a type that is unknown or needs an importance matrix,
    ModelError if llama.cpp refuses.
    """
    if kind not in TYPES:
        raise ConfigError(f"type {kind!r} is unknown: use one of {', '.join(TYPES)}")
    refuse_fatal(model)
    source = quantised_as(model)
    path = variant_path(model, folder, kind)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        noted = {
            "edgecs.source": model.name,
            "edgecs.source_fingerprint": fingerprint(model),
            "edgecs.requantised_from": source or "",
            "edgecs.imatrix": imatrix.name if imatrix else "",
        }
        _quantise(model, path, kind, noted, read_imatrix(imatrix) if imatrix else {})
    return Variant(path, kind, path.stat().st_size, _bits(path), source)


def quantised_as(model: Path) -> str | None:
    """The most common type of a file's matrices; None: they are not quantised.

    Raises ModelError for a file that is not a GGUF.
    """
    tensors = _tensors(model)
    weights: dict[str, int] = {}
    for tensor in tensors:
        name = tensor.tensor_type.name
        if name not in _PLAIN:
            weights[name] = weights.get(name, 0) + int(tensor.n_elements)
    return max(weights, key=lambda name: weights[name]) if weights else None


def _tensors(path: Path) -> Sequence[Any]:
    """A file's tensors; raises ModelError if it is not a GGUF."""
    try:
        return list(gguf.GGUFReader(path).tensors)
    except (OSError, ValueError, IndexError, KeyError) as error:
        why = reason(error)
        raise ModelError(f"{path} cannot be read as a GGUF: {why}") from error


def _bits(path: Path) -> float:
    tensors = _tensors(path)
    weights = sum(int(tensor.n_elements) for tensor in tensors)
    return 8 * sum(int(tensor.n_bytes) for tensor in tensors) / max(1, weights)


def _quantise(
    model: Path,
    path: Path,
    kind: str,
    noted: Mapping[str, str],
    importance: Mapping[str, NDArray[np.float32]],
) -> None:
    clear_log()
    params = lib.llama_model_quantize_default_params()
    params.ftype = TYPES[kind]
    params.allow_requantize = True
    overrides = _overrides(noted)
    params.kv_overrides = ctypes.cast(
        overrides, ctypes.POINTER(lib.llama_model_kv_override)
    )
    entries = _importance(importance)
    if importance:
        params.imatrix = ctypes.cast(
            entries, ctypes.POINTER(lib.llama_model_imatrix_data)
        )
    part = path.with_name(path.name + ".part")
    source, target = str(model).encode(), str(part).encode()
    if lib.llama_model_quantize(source, target, ctypes.pointer(params)):
        part.unlink(missing_ok=True)
        why = "; ".join(logged_errors()) or "no reason given"
        raise ModelError(f"llama.cpp cannot make {kind} of {model}: {why}")
    part.replace(path)


def _overrides(noted: Mapping[str, str]) -> Any:
    """Texts for the metadata; an empty key ends them."""
    entries = (lib.llama_model_kv_override * (len(noted) + 1))()
    for entry, (key, text) in zip(entries, noted.items(), strict=False):
        entry.tag, entry.key = _TEXT, key.encode()
        entry.value.val_str = text.encode()[:_LONGEST]
    return entries


def _importance(importance: Mapping[str, NDArray[np.float32]]) -> Any:
    """Importance by tensor; an empty name ends it. The arrays must outlive it."""
    entries = (lib.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries


_SUMS, _COUNTS = ".in_sum2", ".counts"


def read_imatrix(path: Path) -> dict[str, NDArray[np.float32]]:
    """An importance matrix as `llama-imatrix` writes it (GGUF): mean squares by tensor.

    An expert without data counts as 1. Raises ModelError for other files.
    """
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ModelError(
            f"{path} cannot be read as an importance matrix ({error}): give the .gguf "
            "that llama-imatrix writes"
        ) from error
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    found = {}
    for name, sums in tensors.items():
        if not name.endswith(_SUMS):
            continue
        counts = tensors.get(name.removesuffix(_SUMS) + _COUNTS)
        if counts is None:
            raise ModelError(f"{path} has no counts for {name}: create it again")
        rows = sums.reshape(counts.size, -1)
        counts = counts.reshape(-1, 1)
        means = np.where(counts > 0, rows / np.maximum(counts, 1), 1.0)
        found[name.removesuffix(_SUMS)] = np.ascontiguousarray(
            means, np.float32
        ).ravel()
    if not found:
        raise ModelError(
            f"{path} is not an importance matrix: give the .gguf that llama-imatrix "
            "writes"
        )
    return found
