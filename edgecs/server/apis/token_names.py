"""Tokens and their log-probabilities as the APIs show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgecs.server.models.engine import Engine
from edgecs.session.answer import Token


def named(engine: Engine, token: int) -> dict[str, Any]:
    """A token: its id, its text and the bytes of that."""
    data = engine.piece(token)
    text = data.decode("utf-8", "replace") if data else engine.spelling(token)
    return {"id": token, "token": text, "bytes": list(data)}


def stated(engine: Engine, tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """The log-probabilities of tokens, of those that have some."""
    return [
        {
            **named(engine, token.id),
            "logprob": token.logprobs.logprob,
            "top_logprobs": [
                {**named(engine, other), "logprob": logprob}
                for other, logprob in token.logprobs.top
            ],
        }
        for token in tokens
        if token.logprobs is not None
    ]
