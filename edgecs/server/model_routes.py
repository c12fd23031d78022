"""Routes about models: which there are, which are in memory, loading and unloading.

Paths and fields are those of llama-server's router: /models, /models/load and
/models/unload.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgecs.runtime.served_models import ServedModel
from edgecs.server import openai
from edgecs.server.pool import ModelPool, Resident
from edgecs.server.replies import read_body
from edgecs.server.schemas import LoadRequest, UnloadRequest


async def listed(request: Request, pool: ModelPool, most: int) -> Response:
    """GET /v1/models."""
    return JSONResponse({"object": "list", "data": entries(pool)})


async def one(request: Request, pool: ModelPool, most: int) -> Response:
    """GET /v1/models/NAME. Raises UnknownModel."""
    name = request.path_params["name"]
    model = pool.models.find(name)
    return JSONResponse(_entry(model, _residents(pool).get(name)))


async def load(request: Request, pool: ModelPool, most: int) -> Response:
    """POST /models/load: answers when the model is loaded. most: bytes of the body."""
    asked = await read_body(request, LoadRequest, most)
    pool.models.find(asked.model)  # also where the pool has one model only
    async with pool.acquire(asked.model):
        return JSONResponse({"success": True})


async def unload(request: Request, pool: ModelPool, most: int) -> Response:
    """POST /models/unload: answers when the model is unloaded."""
    asked = await read_body(request, UnloadRequest, most)
    if not await pool.unload(asked.model, cancel=asked.cancel):
        pool.models.find(asked.model)
    return JSONResponse({"success": True})


def entries(pool: ModelPool) -> list[dict[str, Any]]:
    """All models, and the state of those in memory."""
    residents = _residents(pool)
    return [_entry(model, residents.get(model.name)) for model in pool.models.all()]


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
        states = [slot.state for slot in engine.scheduler.slots()]
        entry |= about
        entry["slots"] = len(states)
        entry["slots_busy"] = len(states) - states.count("idle")
    return entry
