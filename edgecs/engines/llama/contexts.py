"""Open a llama.cpp context for a model, and say why it cannot be opened or used."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple, cast

import llama_cpp as lib

from edgecs.engines.llama import library
from edgecs.engines.llama.checkpoints import Keeps
from edgecs.engines.llama.huge_pages import HugePages
from edgecs.engines.llama.kernels import Nodes
from edgecs.engines.llama.model import FLASH_TYPES, KV_TYPES, LlamaModel
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ContextFull, EdgecsError, ModelError, OutOfMemory

# chosen: high, so that a copy is made only where it clearly pays.
_TOKENS_A_PASS = 32  # prompt tokens that are read in the time of one pass over weights
_WINDOW_CELLS = re.compile(r"creating\s+SWA KV cache, size = (\d+) cells")


def open_context(
    model: LlamaModel,
    options: LoadOptions,
    n_ctx: int,
    threads: int,
    nodes: Nodes | None,
    *,
    keeps_states: bool,
) -> lib.llama_context_p:
    """A context with n_ctx cells for each sequence of the options.

    nodes: those that edgecs' kernels compute. keeps_states: whether recurrent states
    are kept in every call, for rejected drafts. Raises OutOfMemory, ModelError.
    """
    params = lib.llama_context_default_params()
    if nodes:
        nodes.enter(params)
    params.n_ctx = n_ctx * options.sequences
    params.n_seq_max = options.sequences * options.leaves
    params.kv_unified = options.leaves > 1  # cells are shared only in this mode
    params.n_batch = params.n_ubatch = options.n_batch
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn_type = FLASH_TYPES[options.flash_attention]
    params.type_k = KV_TYPES[options.type_k]
    params.type_v = KV_TYPES[options.type_v]
    # llama.cpp says nothing of the windows of hybrid models (`seq_pos_min`).
    small = model.rewindable and options.leaves == 1
    params.swa_full = options.swa_full or not small
    if not model.rewindable and keeps_states:
        params.n_rs_seq = model.snapshots(options)
    library.clear_log()
    if not model.kv_fits(n_ctx, options):
        raise _does_not_fit(options.sequences, n_ctx)
    pages = HugePages(options.huge_pages)
    context = lib.llama_init_from_model(model.handle, params)
    if model.is_lost:
        if context is not None:
            lib.llama_free(context)
        model.check_workers()
    if context is None:
        raise _open_error(options.sequences, n_ctx)
    pages.collapse()  # llama.cpp has already written to the cells, to clear them
    return cast(lib.llama_context_p, context)


class Kept(NamedTuple):
    """What a context keeps of earlier tokens."""

    keeps: Keeps
    windowed: bool  # whether some layers have a cache of their own for a window
    steady: int | None  # cells beyond which they are reused in an order of the calls


def kept_by(context: lib.llama_context_p, model: LlamaModel, n_ctx: int) -> Kept:
    """What a context keeps that has just been opened, as llama.cpp logs a part of it.

    n_ctx: its cells for a sequence.
    """
    snapshots = int(lib.llama_n_rs_seq(context))
    windows = map(_WINDOW_CELLS.search, library.logged())
    cells = [int(found[1]) for found in windows if found]
    small = bool(cells) and min(cells) < n_ctx
    window = model.window if small else 0
    return Kept(
        Keeps(not model.rewindable, snapshots, window),
        bool(cells),
        min(cells) if small else None,
    )


def copy_cost(model: LlamaModel, options: LoadOptions, n_ctx: int) -> int | None:
    """How many prompt tokens are read in the time of a copy; None: it is impossible.

    llama.cpp copies all n_ctx cells of a stream, used or not.
    """
    if options.sequences == 1 or options.leaves > 1:
        return None
    if not model.rewindable or model.swa:
        return None  # cells of a prefix may have been replaced by later ones
    moved = 2 * model.kv_bytes(n_ctx, replace(options, sequences=1))
    return 1 + int(moved * _TOKENS_A_PASS / model.size)


def decode_error(code: int) -> EdgecsError:
    """The error for a code of `llama_decode`."""
    said = library.logged_errors()
    why = said[-1] if said else "no reason given"
    if code == 1:
        return ContextFull(f"no room in the KV cache for the next tokens: {why}")
    if code == -2:
        return OutOfMemory(f"llama.cpp ran out of memory while decoding: {why}")
    return ModelError(f"llama.cpp could not decode (code {code}): {why}")


def no_room_to_pack(name: str, why: str) -> OutOfMemory:
    """The error for weights that do not fit into memory a second time."""
    return OutOfMemory(
        f"the weights of {name} packed for edgecs' kernels do not fit into memory "
        f"({why}): use llama.cpp's (--kernels llama) or a smaller quantisation"
    )


def _open_error(sequences: int, n_ctx: int) -> EdgecsError:
    said = library.logged_errors()
    if any("alloc" in line or "memory" in line for line in said) or not said:
        return _does_not_fit(sequences, n_ctx)
    return ModelError(f"llama.cpp cannot open a context: {said[-1]}")


def _does_not_fit(sequences: int, n_ctx: int) -> OutOfMemory:
    several = f"{sequences} contexts of {n_ctx} tokens do"
    what = f"a context of {n_ctx} tokens does" if sequences == 1 else several
    return OutOfMemory(
        f"{what} not fit into memory: give a smaller one (-c), a quantised KV cache "
        "(-ctk q8_0 -ctv q8_0) or fewer GPU layers (-ngl)"
    )
