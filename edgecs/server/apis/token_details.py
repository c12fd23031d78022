"""The field `token_details`: how each token of an answer came about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgecs.session.answer import Token

Named = Callable[[int], Mapping[str, Any]]
"""An id -> a mapping with its text under "token", and the bytes of that."""


def token_detail(token: Token, named: Named) -> dict[str, Any]:
    """One token; `text` is what became certain with it, all texts make the answer."""
    found: dict[str, Any] = {
        "id": token.id,
        "text": token.text,
        "bytes": named(token.id)["bytes"],
        "source": token.source,
    }
    if (detail := token.detail) is None:
        return found
    rejected = None
    if (rival := detail.rejected) is not None:
        rejected = {
            "id": rival.id,
            "text": named(rival.id)["token"],
            "source": rival.source,
            "p": _rounded(rival.p),
        }
    return {
        **found,
        "p": _rounded(detail.p),
        "round": detail.round,
        "width": detail.width,
        "rejected": rejected,
        "ends": detail.ends,
    }


def _rounded(p: float) -> float:
    """Four significant digits are enough to show, and a stream stays short."""
    return float(f"{p:.4g}")
