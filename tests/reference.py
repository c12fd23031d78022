"""Greedy decoding token by token, straight on llama.cpp: knows nothing of edgecs.

But for its kernels, where they are asked for: answers with them are compared with plain
decoding with them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import llama_cpp as lib
import numpy as np

from edgecs.engines.llama.kernels import KernelSet, Nodes, PackedWeights


def plain_greedy(
    path: Path,
    prompts: Sequence[Sequence[int]],
    n: int,
    *,
    n_ctx: int,
    chunk: int = 512,
    kernels: KernelSet | None = None,
) -> list[list[int]]:
    """The next n tokens (fewer after an end token) of each prompt."""
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = kernels is None
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    options = lib.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = n_ctx, chunk, chunk
    packed = kernels and PackedWeights(kernels, 1, lambda packed: True)
    nodes = packed and Nodes(packed, options.n_threads_batch)
    if nodes:
        nodes.enter(options)
    context = lib.llama_init_from_model(model, options)
    vocab = lib.llama_model_get_vocab(model)
    size = lib.llama_vocab_n_tokens(vocab)

    def decode(tokens: Sequence[int]) -> int:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        assert (
            lib.llama_decode(context, lib.llama_batch_get_one(array, len(tokens))) == 0
        )
        row = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (size,))
        return int(row.argmax())

    answers = []
    for prompt in prompts:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        for start in range(0, len(prompt), chunk):
            token = decode([int(t) for t in prompt[start : start + chunk]])
        answer = [token]
        while len(answer) < n and not lib.llama_vocab_is_eog(vocab, answer[-1]):
            answer.append(decode(answer[-1:]))
        answers.append(answer)
    lib.llama_free(context)
    lib.llama_model_free(model)
    if nodes and packed:
        nodes.free()
        packed.close()
    return answers
