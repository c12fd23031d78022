"""What a model of llama.cpp is asked to compute."""

from __future__ import annotations

from edgecs.engines.llama.language_model import LlamaLM


def watched(model: LlamaLM) -> list[tuple[int, int]]:
    """Tokens and rows of every call from now on."""
    calls: list[tuple[int, int]] = []
    decode = model._decode

    def noting(group, **more):
        calls.append((sum(map(len, group)), sum(feed.rows for feed in group)))
        return decode(group, **more)

    model._decode = noting  # type: ignore[method-assign]
    return calls
