"""Contexts with many sequences over the weights of a sweep, for trees of answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace

from edgecs.core.draft import LanguageModel
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.errors import OutOfMemory
from edgecs_bench.cascades.ways import Pair

# chosen: a question with 43 ways has up to about 25 branches, and a branch that waits
# may have to read its text again.
_BRANCHES = 48
_STEP = 64  # tokens; a context is a multiple of it


@contextmanager
def many_sequences(
    pair: Pair, room: int, cancel: threading.Event
) -> Iterator[tuple[LanguageModel, LanguageModel]]:
    """Both models for branches of `room` tokens.

    Where one of them is not a GGUF, or the memory is too small, these are the models of
    the pair with their own sequences.
    """
    target, small = pair.target, pair.small
    with ExitStack() as opened:
        models: tuple[LanguageModel, LanguageModel] = target, small
        if isinstance(target, LlamaLM) and isinstance(small, LlamaLM):
            with suppress(OutOfMemory):
                size = target.vocab_size
                models = (
                    opened.enter_context(closing(_wide(target, room, cancel))),
                    opened.enter_context(closing(_wide(small, room, cancel, size))),
                )
        yield models


def _wide(
    model: LlamaLM, room: int, cancel: threading.Event, drafts_for: int | None = None
) -> LlamaLM:
    """Another context of a model. Raises OutOfMemory."""
    room = min(-(-room // _STEP) * _STEP, model.n_ctx)
    options = replace(
        model.options,
        n_ctx=room,
        threads=model.threads,
        sequences=_BRANCHES,
        max_draft=min(model.max_draft, room - 1),
    )
    return LlamaLM(model.model, options, cancel, drafts_for=drafts_for)


def is_uniform(pair: Pair) -> bool:
    """Whether a row is the same in calls of any width, so that trees are exact."""
    return all(getattr(m, "uniform", False) for m in (pair.target, pair.small))
