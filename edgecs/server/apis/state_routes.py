"""Routes about the state of the server: settings, slots, metrics.

None of them loads a model or prolongs its stay.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgecs.runtime.recipe import Recipe
from edgecs.server.apis import metrics
from edgecs.server.apis.endpoint import AboutEndpoint
from edgecs.server.models.embedding_engine import EmbeddingEngine
from edgecs.server.models.engine import Engine
from edgecs.server.models.pool import ModelPool
from edgecs.server.models.served import Served


async def props(pool: ModelPool, request: Request, asked: None) -> Response:
    """GET /props: of the model `?model=`, or of the server if it has several."""
    name = request.query_params.get("model")
    if name is None and pool.default is None:
        return JSONResponse(_server(pool))
    async with pool.peek(name) as engine:
        (model,) = (one.model for one in pool.residents() if one.name == engine.name)
        found = {**properties(engine), "reference": model.reference}
        if isinstance(engine, Engine):
            owner = await asyncio.to_thread(getattr, engine, "owner")
            found["weights"] = asdict(owner)
        return JSONResponse(found)


async def slots(pool: ModelPool, request: Request, asked: None) -> Response:
    """GET /slots: of the model `?model=`, or of all that are loaded."""
    name = request.query_params.get("model")
    found = [
        {"model": loaded, **slot._asdict()}
        for loaded, engine in _loaded(pool).items()
        if name in (None, loaded) or pool.only_default
        if isinstance(engine, Engine)
        for slot in engine.scheduler.slots()
    ]
    return JSONResponse(found)


async def counts(pool: ModelPool, request: Request, asked: None) -> Response:
    """GET /metrics: of all models that are loaded."""
    text = metrics.exposition(_loaded(pool))
    return Response(text, media_type=metrics.CONTENT_TYPE)


def _loaded(pool: ModelPool) -> dict[str, Served]:
    """The engines that are loaded. They may be read until the next `await`."""
    return {one.name: one.engine for one in pool.residents() if one.engine is not None}


def _server(pool: ModelPool) -> dict[str, Any]:
    return {
        "role": "router",
        "build_info": f"edgecs {version('edgecs')}",
        "max_instances": pool.limits.most or None,
        "models_autoload": True,
    }


def properties(engine: Served) -> dict[str, Any]:
    """The settings of a loaded model."""
    about = {
        "model": engine.name,
        "n_ctx": engine.n_ctx,
        "total_slots": engine.slots,
        "chat_template": engine.chat_template,
        "build_info": f"edgecs {version('edgecs')}",
    }
    if isinstance(engine, EmbeddingEngine):
        return {**about, "embedding_length": engine.width}
    return {**about, **_drafting(engine)} if isinstance(engine, Engine) else about


def _drafting(engine: Engine) -> dict[str, Any]:
    runtime = engine.runtime
    session = runtime.session
    return {
        "kernels": engine.loaded.options.kernels,
        "chain": session.chain,
        "tiers": runtime.tiers,
        "exact": runtime.exactness(),
        "off_reason": session.off_reason,
        "settings": settings(runtime.recipe),
    }


def settings(recipe: Recipe) -> dict[str, Any]:
    """What the text of answers depends on besides the model and the request.

    Names are those of `LoadOptions` and `Recipe`; values are as they were requested.
    """
    return {
        **recipe.options.having("bits"),
        "exact": recipe.exact,
        "sampling": asdict(recipe.sampling),
    }


ENDPOINTS = (
    AboutEndpoint("/props", props, None, "Settings of the server.", "The settings."),
    AboutEndpoint("/slots", slots, None, "What every slot does.", "The slots."),
    AboutEndpoint(
        "/metrics", counts, None, "Counts for Prometheus.", "The counts.", "text/plain"
    ),
)
