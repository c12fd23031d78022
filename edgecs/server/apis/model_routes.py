"""Routes about models: which there are, which are in memory, loading and unloading.

Paths and fields are those of llama-server's router: /models, /models/load and
/models/unload.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgecs.runtime.served_models import ServedModel
from edgecs.server.answers.schemas import LoadRequest, UnloadRequest
from edgecs.server.apis.endpoint import AboutEndpoint
from edgecs.server.models.engine import Engine
from edgecs.server.models.pool import ModelPool
from edgecs.server.models.residency import Resident
from edgecs.server.models.served import Served


async def listed(pool: ModelPool, request: Request, asked: None) -> Response:
    """GET /v1/models."""
    models = await asyncio.to_thread(pool.models.all)
    residents = _residents(pool)
    data = [_entry(model, residents.get(model.name)) for model in models]
    return JSONResponse({"object": "list", "data": data})


async def one(pool: ModelPool, request: Request, asked: None) -> Response:
    """GET /v1/models/NAME. Raises UnknownModel."""
    model = await asyncio.to_thread(pool.models.find, request.path_params["name"])
    return JSONResponse(_entry(model, _residents(pool).get(model.name)))


async def load(pool: ModelPool, request: Request, asked: LoadRequest) -> Response:
    """POST /models/load: answers when the model is loaded."""
    # A pool with one model ignores names, but it does not load another one.
    await asyncio.to_thread(pool.models.find, asked.model)
    async with pool.acquire(asked.model):
        return JSONResponse({"success": True})


async def unload(pool: ModelPool, request: Request, asked: UnloadRequest) -> Response:
    """POST /models/unload: answers when the model is unloaded."""
    await pool.unload(asked.model, cancel=asked.cancel)
    return JSONResponse({"success": True})


def _residents(pool: ModelPool) -> dict[str, Resident]:
    return {resident.name: resident for resident in pool.residents()}


def _entry(model: ServedModel, resident: Resident | None) -> dict[str, Any]:
    state = resident.state if resident else "unloaded"
    entry: dict[str, Any] = {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "edgecs",
        "status": {"value": state},
        "reference": model.reference,
        "size": model.size,
    }
    if resident is None:
        return entry
    entry |= {"users": resident.users, "expires_at": resident.expires_at}
    engine = resident.engine
    if engine is not None:
        entry |= _about(engine)
    if isinstance(engine, Engine):
        states = [slot.state for slot in engine.scheduler.slots()]
        entry["slots"] = len(states)
        entry["slots_busy"] = len(states) - states.count("idle")
    return entry


def _about(engine: Served) -> dict[str, Any]:
    """What is known of a model in memory, in the form of OpenAI's API."""
    model = engine.loaded.model
    meta = {
        "n_vocab": engine.vocab_size,
        "n_ctx": engine.n_ctx,
        "n_ctx_train": model.trained_ctx,
        "n_params": model.parameters,
        "size": model.size,
    }
    return {"id": engine.name, "created": engine.created, "meta": meta}


ENDPOINTS = (
    AboutEndpoint("/v1/models", listed, None, "The models.", "The models."),
    AboutEndpoint("/models", listed, None, "The models.", "The models."),
    AboutEndpoint("/v1/models/{name:path}", one, None, "One model.", "The model."),
    AboutEndpoint("/models/load", load, LoadRequest, "Load a model.", "It is loaded."),
    AboutEndpoint(
        "/models/unload", unload, UnloadRequest, "Unload one.", "It is gone."
    ),
)
