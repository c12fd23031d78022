"""The engine for what was loaded."""

from __future__ import annotations

from pathlib import Path

from edgecs.runtime.builder import Runtime
from edgecs.runtime.embedding import LoadedEmbedder
from edgecs.server.models.embedding_engine import EmbeddingEngine
from edgecs.server.models.engine import Engine
from edgecs.server.prefixes.store import PREFIX_BYTES


def engine_of(
    found: Runtime | LoadedEmbedder,
    name: str,
    *,
    waiting: int,
    prefix_cache: Path | None = None,
    prefix_bytes: int = PREFIX_BYTES,
) -> Engine | EmbeddingEngine:
    """The engine of a model that writes text, or of one that embeds it.

    Arguments are those of `Engine`.
    """
    if isinstance(found, LoadedEmbedder):
        return EmbeddingEngine(found, name, waiting=waiting)
    return Engine(
        found,
        name,
        waiting=waiting,
        prefix_cache=prefix_cache,
        prefix_bytes=prefix_bytes,
    )
