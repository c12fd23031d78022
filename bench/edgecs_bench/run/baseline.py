"""The baseline: llama.cpp's own loop with its own kernels."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from edgecs.engines.llama.model import KV_TYPES
from edgecs.errors import OutOfMemory
from edgecs.runtime.loader import Loaded, load
from edgecs_bench.run.plain_llama import PlainLlama

_LEAST_CONTEXT = 64  # tokens of a context that is not used


def llama_beside(loaded: Loaded, closing: ExitStack) -> PlainLlama | None:
    """llama.cpp's loop over the same file; None: not enough memory.

    It shares the weights unless they are packed for edgecs's kernels.
    """
    options, n_ctx = loaded.options, loaded.target.n_ctx
    model = loaded.model
    if not model.kv_fits(n_ctx, options):
        return None
    if model.kernels:
        theirs = replace(options, kernels="llama", n_ctx=_LEAST_CONTEXT)
        try:
            other = load(
                model.path, theirs, cancel=loaded.cancel, findings=loaded.findings
            )
        except OutOfMemory:
            return None
        model = closing.enter_context(other).model
    kinds = KV_TYPES[options.type_k], KV_TYPES[options.type_v]
    plain = PlainLlama(model.handle, n_ctx, loaded.target.threads, *kinds)
    return closing.enter_context(plain)
