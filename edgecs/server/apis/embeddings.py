"""Embeddings in the forms of OpenAI's and Ollama's APIs."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StrictBool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgecs.core.context import Tokens
from edgecs.errors import ConfigError, ContextFull
from edgecs.server.answers.body import Body
from edgecs.server.answers.schemas import MOST_TEXT, Text
from edgecs.server.apis.endpoint import Endpoint
from edgecs.server.http.replies import unless_gone
from edgecs.server.models.embedding_engine import Embedded, EmbeddingEngine

MOST_INPUTS, MOST_TOKENS = 2048, 300_000  # in a request, as OpenAI's API has it

_Ids = Annotated[list[int], Field(max_length=MOST_TEXT)]
_Texts = Annotated[list[Text], Field(max_length=MOST_INPUTS)]


class _Fields(Body):
    model: str | None = Field(default=None, max_length=1024)
    dimensions: int | None = Field(default=None, ge=1, lt=1 << 31)


class EmbeddingsRequest(_Fields):
    """POST /v1/embeddings. truncate: shorten texts that are too long."""

    input: Text | _Ids | _Texts | Annotated[list[_Ids], Field(max_length=MOST_INPUTS)]
    encoding_format: Literal["float", "base64"] = "float"
    truncate: StrictBool = False


class EmbedRequest(_Fields):
    """POST /api/embed. truncate: as in Ollama, it is the default."""

    input: Text | _Texts
    truncate: StrictBool | None = None


class OldEmbeddingsRequest(_Fields):
    """POST /api/embeddings, which Ollama had before /api/embed."""

    prompt: Text


async def create(
    engine: EmbeddingEngine, request: Request, asked: EmbeddingsRequest, seconds: float
) -> Response:
    """POST /v1/embeddings. seconds: time limit."""
    texts = _several(asked.input)
    if not texts:
        raise ConfigError("input is empty: give a text, or a list of some")
    found = await _embedded(engine, request, asked, texts, asked.truncate, seconds)
    rows = _normalised(engine, found.rows, asked.dimensions)
    as_text = asked.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": _base64(row) if as_text else row.tolist(),
        }
        for i, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    model = asked.model or engine.name
    return JSONResponse(
        {"object": "list", "data": data, "model": model, "usage": usage}
    )


async def embed(
    engine: EmbeddingEngine, request: Request, asked: EmbedRequest, seconds: float
) -> Response:
    """POST /api/embed."""
    began = time.perf_counter()
    shortened = asked.truncate is not False
    texts = _several(asked.input) if asked.input else []
    found = await _embedded(engine, request, asked, texts, shortened, seconds)
    rows = _normalised(engine, found.rows, asked.dimensions)
    return JSONResponse(
        {
            "model": asked.model or engine.name,
            "embeddings": rows.tolist(),
            "total_duration": round((time.perf_counter() - began) * 1e9),
            "load_duration": 0,
            "prompt_eval_count": found.tokens,
        }
    )


async def embed_one(
    engine: EmbeddingEngine,
    request: Request,
    asked: OldEmbeddingsRequest,
    seconds: float,
) -> Response:
    """POST /api/embeddings: one text, not normalised, as Ollama has it."""
    if not asked.prompt:  # the model is only loaded
        return JSONResponse({"embedding": []})
    found = await _embedded(engine, request, asked, [asked.prompt], True, seconds)
    return JSONResponse({"embedding": found.rows[0].tolist()})


def _several(
    given: str | list[int] | list[str] | list[list[int]],
) -> list[str | list[int]]:
    """The texts of an `input`, each a text or its ids."""
    if isinstance(given, str):
        return [given]
    ids = [one for one in given if isinstance(one, int)]
    return [ids] if ids else [one for one in given if not isinstance(one, int)]


async def _embedded(
    engine: EmbeddingEngine,
    request: Request,
    asked: _Fields,
    texts: Sequence[str | list[int]],
    truncate: bool,
    seconds: float,
) -> Embedded:
    """Embeddings, unless the client leaves. Raises EdgecsError, Refused."""
    if asked.dimensions is not None and asked.dimensions > engine.width:
        raise ConfigError(
            f"dimensions: this model's embeddings have {engine.width} numbers, and "
            f"{asked.dimensions} were asked for"
        )
    ids = await asyncio.to_thread(_ids, engine, texts, truncate)
    return await unless_gone(request, engine.embed(ids, seconds))


def _ids(
    engine: EmbeddingEngine, texts: Sequence[str | list[int]], truncate: bool
) -> list[Tokens]:
    found, total = list[Tokens](), 0
    for at, text in enumerate(texts):
        ids = engine.tokens_of(text, truncate=truncate)
        if ids.size > engine.n_ctx:
            raise ContextFull(
                f"input {at} has {ids.size} tokens but the model takes {engine.n_ctx}: "
                "split it, give truncate, or start the server with a larger context "
                "(-c)"
            )
        total += ids.size
        if total > MOST_TOKENS:
            raise ConfigError(
                f"the texts have more than {MOST_TOKENS} tokens: send several requests"
            )
        found.append(ids)
    return found


def _normalised(
    engine: EmbeddingEngine, rows: NDArray[np.float32], dimensions: int | None
) -> NDArray[np.float32]:
    """The first numbers of each row, with length 1 (Matryoshka, arXiv 2205.13147)."""
    cut = rows[:, : dimensions or engine.width].astype(np.float64)
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    found: NDArray[np.float32] = (cut / np.maximum(lengths, 1e-30)).astype(np.float32)
    return found


def _base64(row: NDArray[np.float32]) -> str:
    """Its numbers as little-endian floats of 32 bits."""
    return base64.b64encode(row.astype("<f4").tobytes()).decode()


ENDPOINTS = (
    Endpoint(
        "/v1/embeddings",
        create,
        EmbeddingsRequest,
        "Embed texts (OpenAI).",
        "The embeddings, each of length 1.",
        EmbeddingEngine,
    ),
    Endpoint(
        "/embeddings",
        create,
        EmbeddingsRequest,
        "Embed texts (OpenAI).",
        "The embeddings, each of length 1.",
        EmbeddingEngine,
    ),
    Endpoint(
        "/api/embed",
        embed,
        EmbedRequest,
        "Embed texts (Ollama).",
        "The embeddings, each of length 1.",
        EmbeddingEngine,
    ),
    Endpoint(
        "/api/embeddings",
        embed_one,
        OldEmbeddingsRequest,
        "Embed a text (Ollama's older form).",
        "The embedding, as the model gives it.",
        EmbeddingEngine,
    ),
)
