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
from edgecs.server import openai
from edgecs.server.engine import Engine
from edgecs.server.pool import ModelPool
from edgecs.server.replies import read_body
from edgecs.server.residency import Resident
from edgecs.server.schemas import LoadRequest, UnloadRequest


async def listed(request: Request, pool: ModelPool, most: int) -> Response:
    """GET /v1/models."""
    models = await asyncio.to_thread(pool.models.all)
    residents = _residents(pool)
    data = [_entry(model, residents.get(model.name)) for model in models]
    return JSONResponse({"object": "list", "data": data})


async def one(request: Request, pool: ModelPool, most: int) -> Response:
    """GET /v1/models/NAME. Raises UnknownModel."""
    model = await asyncio.to_thread(pool.models.find, request.path_params["name"])
    return JSONResponse(_entry(model, _residents(pool).get(model.name)))


async def load(request: Request, pool: ModelPool, most: int) -> Response:
    """POST /models/load: answers when the model is loaded. most: bytes of the body."""
    asked = await read_body(request, LoadRequest, most)
    # A pool with one model ignores names, but it does not load another one.
    await asyncio.to_thread(pool.models.find, asked.model)
    async with pool.acquire(asked.model):
        return JSONResponse({"success": True})


async def unload(request: Request, pool: ModelPool, most: int) -> Response:
    """POST /models/unload: answers when the model is unloaded."""
    asked = await read_body(request, UnloadRequest, most)
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
        (about,) = openai.models(engine)["data"]
        entry |= about
    if isinstance(engine, Engine):
        states = [slot.state for slot in engine.scheduler.slots()]
        entry["slots"] = len(states)
        entry["slots_busy"] = len(states) - states.count("idle")
    return entry
