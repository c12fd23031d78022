"""Ollama's API: which models there are, and what is known about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgecs.server.endpoint import Endpoint
from edgecs.server.engine import Engine
from edgecs.server.ollama import FRAMING
from edgecs.server.ollama_schemas import PullRequest, ShowRequest
from edgecs.server.replies import Refused, event_stream

# Clients ask for a version before they use what came with it; this API is that of 0.12.
VERSION = "0.12.0"
_NEVER = "2318-01-01T00:00:00Z"  # what Ollama says of a model that stays


async def tags(
    engine: Engine, request: Request, asked: None, seconds: float
) -> Response:
    """GET /api/tags."""
    return JSONResponse({"models": [_entry(engine)]})


async def running(
    engine: Engine, request: Request, asked: None, seconds: float
) -> Response:
    """GET /api/ps."""
    model = engine.loaded.model
    offload = model.offload
    on_devices = model.size * offload.layers // max(1, offload.total)
    entry = {
        **_entry(engine),
        "size": model.size,
        "size_vram": on_devices,
        "expires_at": _NEVER,
        "context_length": engine.n_ctx,
    }
    del entry["modified_at"]
    return JSONResponse({"models": [entry]})


async def show(
    engine: Engine, request: Request, asked: ShowRequest, seconds: float
) -> Response:
    """POST /api/show."""
    _check(engine, asked)
    model = engine.loaded.model
    found: dict[str, Any] = dict(sorted(model.metadata.items()))
    found["general.parameter_count"] = model.parameters
    capabilities = ["completion", *(["thinking"] if engine.can_think else [])]
    return JSONResponse(
        {
            "modelfile": f"FROM {engine.name}\n",
            "parameters": "",
            "template": engine.chat_template or "",
            "license": str(found.get("general.license", "")),
            "modified_at": _modified(engine),
            "details": _details(engine),
            "model_info": found,
            "capabilities": capabilities,
        }
    )


async def pull(
    engine: Engine, request: Request, asked: PullRequest, seconds: float
) -> Response:
    """POST /api/pull: only of the model that is here."""
    _check(engine, asked)
    if asked.stream is False:
        return JSONResponse({"status": "success"})

    async def steps() -> AsyncGenerator[dict[str, str], None]:
        for status in ("pulling manifest", "verifying sha256 digest", "success"):
            yield {"status": status}

    return event_stream(steps(), lambda: None, FRAMING)


async def api_version(
    engine: Engine, request: Request, asked: None, seconds: float
) -> Response:
    """GET /api/version."""
    return JSONResponse({"version": VERSION})


def _check(engine: Engine, asked: ShowRequest | PullRequest) -> None:
    """Raises Refused unless the model of the server is meant."""
    name = asked.model or asked.name
    if not name:
        raise Refused(400, "model is required")
    if name.removesuffix(":latest") != engine.name:
        raise Refused(404, f"model {name!r:.200} not found: use {engine.name!r}")


def _entry(engine: Engine) -> dict[str, Any]:
    about = {
        "name": engine.name,
        "model": engine.name,
        "modified_at": _modified(engine),
        "size": engine.loaded.model.size,
        "details": _details(engine),
    }
    # Ollama's is the digest of what it keeps about a model, not of the weights.
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return {**about, "digest": digest}


def _details(engine: Engine) -> dict[str, Any]:
    model = engine.loaded.model
    family = str(model.metadata.get("general.architecture", ""))
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": _in_words(model.parameters),
        "quantization_level": model.file_type,
    }


def _modified(engine: Engine) -> str:
    try:
        seconds = engine.loaded.model.path.stat().st_mtime
    except OSError:  # it was deleted while it is in memory
        seconds = engine.created
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
    Endpoint("/api/tags", tags, None, "The models (Ollama).", "The models."),
    Endpoint("/api/ps", running, None, "The models in memory (Ollama).", "The models."),
    Endpoint(
        "/api/show",
        show,
        ShowRequest,
        "What is known about a model (Ollama).",
        "Its metadata, template and abilities.",
    ),
    Endpoint(
        "/api/pull",
        pull,
        PullRequest,
        "Fetch a model; only one that is here already (Ollama).",
        "The steps, one JSON value a line.",
    ),
    Endpoint(
        "/api/version", api_version, None, "The version of the API (Ollama).", "It."
    ),
)
