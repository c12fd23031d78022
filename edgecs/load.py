"""From a model file to a session that is ready to answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgecs.draft import Choose, Drafter
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

    Raises ModelError, OutOfMemory, Cancelled.
    """
    from edgecs.backends.llama_model import LlamaModel
    from edgecs.backends.llama_target import LlamaTarget

    cancel = cancel or threading.Event()
    with ExitStack() as undo:
        model = LlamaModel(path, options, cancel)
        undo.callback(model.close)
        target = LlamaTarget(model, options, cancel)
        undo.pop_all()
    return Loaded(model, target, cancel)
