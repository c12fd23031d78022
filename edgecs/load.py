"""From a model file to a session that is ready to answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgecs.draft import Choose, Drafter
from edgecs.errors import OutOfMemory
from edgecs.offload import fewer_layers
from edgecs.options import LoadOptions
from edgecs.sampling import greedy
from edgecs.session import Session

if TYPE_CHECKING:
    from edgecs.backends.llama_model import LlamaModel
    from edgecs.backends.llama_target import LlamaTarget


@dataclass(frozen=True)
class Loaded:
    """A target in memory; a context manager that frees it."""

    model: LlamaModel
    target: LlamaTarget
    cancel: threading.Event
    note: str | None  # what automatic offloading decided, None: nothing to decide

    def session(
        self, drafters: Sequence[Drafter], draft_max: int, *, choose: Choose = greedy
    ) -> Session:
        """A session over the target; one at a time."""
        vocabulary = self.model.vocabulary
        return Session(
            self.target, vocabulary, drafters, draft_max=draft_max, choose=choose
        )

    def close(self) -> None:
        """Frees context and weights; may be called again."""
        self.target.close()
        self.model.close()

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def load(
    path: Path, options: LoadOptions, *, cancel: threading.Event | None = None
) -> Loaded:
    """Loads a GGUF as target; setting `cancel` stops loading and, later, answers.

    With automatic offloading an allocation that fails is tried again with fewer GPU
    layers. Raises ModelError, OutOfMemory, Cancelled.
    """
    from edgecs.backends.llama_offload import automatic_layers

    cancel = cancel or threading.Event()
    if options.n_gpu_layers != "auto":
        return _open(path, options, cancel, None)
    layers, n_ctx, note = automatic_layers(path, options)
    while True:
        chosen = replace(options, n_gpu_layers=layers, n_ctx=n_ctx)
        try:
            return _open(path, chosen, cancel, note)
        except OutOfMemory:
            if not layers:
                raise
            layers = fewer_layers(layers)
            note = f"allocation failed with more, so {layers} GPU layers"


def _open(
    path: Path, options: LoadOptions, cancel: threading.Event, note: str | None
) -> Loaded:
    from edgecs.backends.llama_model import LlamaModel
    from edgecs.backends.llama_target import LlamaTarget

    with ExitStack() as undo:
        model = LlamaModel(path, options, cancel)
        undo.callback(model.close)
        target = LlamaTarget(model, options, cancel)
        undo.pop_all()
    return Loaded(model, target, cancel, note)
