"""Ollama's API: which models there are, and what is known about them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgecs.errors import EdgecsError
from edgecs.runtime.served_models import ServedModel, UnknownModel
from edgecs.server.apis.endpoint import AboutEndpoint
from edgecs.server.apis.ollama.routes import FRAMING
from edgecs.server.apis.ollama.schemas import PullRequest, ShowRequest
from edgecs.server.http.replies import Refused, event_stream, refusal
from edgecs.server.models.embedding_engine import EmbeddingEngine
from edgecs.server.models.engine import Engine
from edgecs.server.models.pool import ModelPool
from edgecs.server.models.residency import Resident
from edgecs.server.models.served import Served

# Clients ask for a version before they use what came with it; this API is that of 0.12.
VERSION = "0.12.0"
_NEVER = "2318-01-01T00:00:00Z"  # what Ollama says of a model that stays


async def tags(pool: ModelPool, request: Request, asked: None) -> Response:
    """GET /api/tags."""
    loaded = _loaded(pool)
    models = await asyncio.to_thread(pool.models.all)
    entries = [_entry(model, loaded.get(model.name)) for model in models]
    return JSONResponse({"models": entries})


async def running(pool: ModelPool, request: Request, asked: None) -> Response:
    """GET /api/ps."""
    return JSONResponse(
        {"models": [_running(one) for one in pool.residents() if one.engine]}
    )


def _running(resident: Resident) -> dict[str, Any]:
    engine = resident.engine
    assert engine is not None
    offload = engine.loaded.model.offload
    entry = _entry(resident.model, engine)
    del entry["modified_at"]
    return {
        **entry,
        "size_vram": entry["size"] * offload.layers // max(1, offload.total),
        "expires_at": _time(resident.expires_at) if resident.expires_at else _NEVER,
        "context_length": engine.n_ctx,
    }


async def show(pool: ModelPool, request: Request, asked: ShowRequest) -> Response:
    """POST /api/show: all that is known of a model in memory, else of its file."""
    model = await _meant(pool, asked)
    engine = _loaded(pool).get(model.name)
    found: dict[str, Any] = {}
    if engine is not None:
        found |= sorted(engine.loaded.model.metadata.items())
        found["general.parameter_count"] = engine.loaded.model.parameters
    return JSONResponse(
        {
            "modelfile": f"FROM {model.name}\n",
            "parameters": "",
            "template": (engine and engine.chat_template) or "",
            "license": str(found.get("general.license", "")),
            "modified_at": _modified(model),
            "details": _details(engine),
            "model_info": found,
            "capabilities": _abilities(engine),
        }
    )


def _abilities(engine: Served | None) -> list[str]:
    if isinstance(engine, EmbeddingEngine):
        return ["embedding"]
    can_think = isinstance(engine, Engine) and engine.can_think
    # Every model can call that has a chat template, which is known once it is loaded.
    can_call = engine is None or bool(engine.chat_template)
    named = {"completion": True, "tools": can_call, "thinking": can_think}
    return [name for name, can in named.items() if can]


async def pull(pool: ModelPool, request: Request, asked: PullRequest) -> Response:
    """POST /api/pull: of a model that is here, unless the server may download."""
    model = await _meant(pool, asked)
    if asked.stream is False:
        await asyncio.to_thread(pool.models.path, model)
        return JSONResponse({"status": "success"})

    async def steps() -> AsyncGenerator[dict[str, str], None]:
        yield {"status": "pulling manifest"}
        try:
            await asyncio.to_thread(pool.models.path, model)
        except EdgecsError as error:
            raise refusal(error) from error
        yield {"status": "verifying sha256 digest"}
        yield {"status": "success"}

    return event_stream(steps(), lambda: None, FRAMING)


async def api_version(pool: ModelPool, request: Request, asked: None) -> Response:
    """GET /api/version."""
    return JSONResponse({"version": VERSION})


async def _meant(pool: ModelPool, asked: ShowRequest | PullRequest) -> ServedModel:
    """The model of a request. Raises Refused, UnknownModel."""
    name = asked.model or asked.name
    if not name:
        raise Refused(400, "model is required")
    try:
        return await asyncio.to_thread(pool.models.find, name)
    except UnknownModel as error:
        raise Refused(404, f"model {name!r:.200} not found: {error}") from error


def _loaded(pool: ModelPool) -> dict[str, Served]:
    return {one.name: one.engine for one in pool.residents() if one.engine is not None}


def _entry(model: ServedModel, engine: Served | None) -> dict[str, Any]:
    about = {
        "name": model.name,
        "model": model.name,
        "modified_at": _modified(model),
        "size": model.size,
    }
    # Ollama's is the digest of what it keeps about a model, not of the weights.
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return {**about, "digest": digest, "details": _details(engine)}


def _details(engine: Served | None) -> dict[str, Any]:
    """What the file says of a model in memory."""
    family, size, type_ = "", "", ""
    if engine is not None:
        loaded = engine.loaded.model
        family = str(loaded.metadata.get("general.architecture", ""))
        size, type_ = _in_words(loaded.parameters), loaded.file_type
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": size,
        "quantization_level": type_,
    }


def _modified(model: ServedModel) -> str:
    try:
        return _time(model.path.stat().st_mtime if model.path else 0.0)
    except OSError:  # it was deleted while it is in memory
        return _time(0.0)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _in_words(count: int) -> str:
    """A number of weights, as Ollama writes it.

    >>> _in_words(134_515_008), _in_words(1_543_714_304), _in_words(999)
    ('134.52M', '1.5B', '999')
    """
    if count >= 10**9:
        return f"{count / 1e9:.1f}B"
    if count >= 10**6:
        return f"{count / 1e6:.2f}M"
    return f"{count / 1e3:.0f}K" if count >= 1000 else str(count)


ENDPOINTS = (
    AboutEndpoint("/api/tags", tags, None, "The models (Ollama).", "The models."),
    AboutEndpoint(
        "/api/ps", running, None, "The models in memory (Ollama).", "The models."
    ),
    AboutEndpoint(
        "/api/show",
        show,
        ShowRequest,
        "What is known about a model (Ollama).",
        "Its metadata, template and abilities.",
    ),
    AboutEndpoint(
        "/api/pull",
        pull,
        PullRequest,
        "Fetch a model; others than those here only if that is allowed (Ollama).",
        "The steps, one JSON value a line.",
    ),
    AboutEndpoint(
        "/api/version", api_version, None, "The version of the API (Ollama).", "It."
    ),
)
