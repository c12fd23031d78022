"""Load an embedding model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.builder import Files, Runtime, build
from edgecs.runtime.folders import Folders
from edgecs.runtime.opening import options_that_compute, with_layers_that_fit
from edgecs.runtime.recipe import Recipe
from edgecs.runtime.target import Reports

if TYPE_CHECKING:
    from edgecs.engines.llama.embedder import LlamaEmbedder
    from edgecs.engines.llama.model import LlamaModel


@dataclass(frozen=True)
class LoadedEmbedder:
    """An embedding model in memory; a context manager that frees it."""

    model: LlamaModel
    embedder: LlamaEmbedder
    options: LoadOptions

    def close(self) -> None:
        """Free context and weights; may be called again."""
        self.embedder.close()
        self.model.close()

    def __enter__(self) -> LoadedEmbedder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def load_embedder(
    path: Path,
    options: LoadOptions,
    *,
    cancel: threading.Event | None = None,
    findings: Path | None = None,
) -> LoadedEmbedder:
    """Load a GGUF that states how it pools, with llama.cpp's kernels.

    options: n_ctx is the most tokens of a text, see `LlamaEmbedder`. findings: see
    `loader.load`. Raises ModelError, OutOfMemory, Cancelled.
    """
    from edgecs.engines.llama.embedder import USUAL, LlamaEmbedder
    from edgecs.engines.llama.model import LlamaModel, check_file
    from edgecs.engines.llama.model_trial import refuse_fatal

    cancel = cancel or threading.Event()
    check_file(path)
    refuse_fatal(path, findings, cancel)
    usable, _ = options_that_compute(options, findings)
    usable = replace(usable, n_ctx=options.n_ctx or USUAL)

    def open_with(options: LoadOptions, note: str | None) -> LoadedEmbedder:
        with ExitStack() as undo:
            model = LlamaModel(path, options, cancel, embeds=True)
            undo.callback(model.close)
            embedder = LlamaEmbedder(model, options, cancel)
            undo.pop_all()
        return LoadedEmbedder(model, embedder, options)

    return with_layers_that_fit(path, usable, open_with)


@contextmanager
def build_or_embed(
    recipe: Recipe,
    files: Files,
    folders: Folders,
    reports: Reports | None = None,
    cancel: threading.Event | None = None,
) -> Iterator[Runtime | LoadedEmbedder]:
    """What a file is for: `builder.build`, or an embedding model."""
    from edgecs.engines.llama.model import EmbeddingModel

    with ExitStack() as closing:
        found: Runtime | LoadedEmbedder
        try:
            found = closing.enter_context(
                build(recipe, files, folders, reports, cancel)
            )
        except EmbeddingModel:
            found = closing.enter_context(
                load_embedder(
                    files.model,
                    recipe.options,
                    cancel=cancel,
                    findings=folders.findings,
                )
            )
        yield found
