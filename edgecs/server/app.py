"""The HTTP application: its routes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgecs.errors import EdgecsError
from edgecs.server import (
    anthropic,
    metrics,
    ollama,
    ollama_models,
    openai,
    openapi,
    responses,
)
from edgecs.server.endpoint import Endpoint
from edgecs.server.engine import Engine
from edgecs.server.error_forms import error_response
from edgecs.server.guard import Access, Guard
from edgecs.server.replies import Refused, read_body, refusal
from edgecs.server.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TemplateRequest,
    TokenizeRequest,
)
from edgecs.server.web import page_routes

MOST_BODY = 16 << 20  # bytes
MOST_SECONDS = 3600.0  # time limit of an answer

ENDPOINTS: tuple[Endpoint, ...] = (
    *anthropic.ENDPOINTS,
    *ollama.ENDPOINTS,
    *ollama_models.ENDPOINTS,
    *responses.ENDPOINTS,
)

Answer = Callable[[Request, Engine], Awaitable[Response]]


@dataclass
class Serving:
    """The state of the application; `engine` is set once the model is loaded."""

    engine: Engine | None = None
    access: Access = field(default_factory=Access)
    most_body: int = MOST_BODY
    most_seconds: float = MOST_SECONDS


def create_app(serving: Serving) -> Starlette:
    """The application. All errors are JSON in the form of their API."""

    def route(path: str, answer: Answer, method: str = "POST") -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                if serving.engine is None:
                    raise Refused(503, "Loading model", "unavailable_error")
                return await answer(request, serving.engine)
            except Refused as error:
                return error_response(error, request.url.path)
            except EdgecsError as error:
                return error_response(refusal(error), request.url.path)

        return Route(path, endpoint, methods=[method])

    def listed(one: Endpoint) -> Route:
        async def answer(request: Request, engine: Engine) -> Response:
            asked = None
            if one.body is not None:
                asked = await read_body(request, one.body, serving.most_body)
            return await one.handler(engine, request, asked, serving.most_seconds)

        return route(one.path, answer, one.method)

    async def health(request: Request) -> Response:
        if serving.engine is None:
            loading = Refused(503, "Loading model", "unavailable_error")
            return error_response(loading, request.url.path)
        return JSONResponse({"status": "ok"})

    async def chat(request: Request, engine: Engine) -> Response:
        asked = await read_body(request, ChatRequest, serving.most_body)
        return await openai.chat(engine, request, asked, serving.most_seconds)

    async def complete(request: Request, engine: Engine) -> Response:
        asked = await read_body(request, CompletionRequest, serving.most_body)
        return await openai.complete(engine, request, asked, serving.most_seconds)

    async def tokenize(request: Request, engine: Engine) -> Response:
        asked = await read_body(request, TokenizeRequest, serving.most_body)
        ids = await asyncio.to_thread(
            engine.encode, asked.content, document=asked.add_special
        )
        tokens: list[Any] = ids.tolist()
        if asked.with_pieces:
            tokens = [{"id": one, "piece": engine.decode([one])} for one in tokens]
        return JSONResponse({"tokens": tokens})

    async def detokenize(request: Request, engine: Engine) -> Response:
        asked = await read_body(request, DetokenizeRequest, serving.most_body)
        text = await asyncio.to_thread(engine.decode, asked.tokens)
        return JSONResponse({"content": text})

    async def apply_template(request: Request, engine: Engine) -> Response:
        asked = await read_body(request, TemplateRequest, serving.most_body)
        messages = [message.plain() for message in asked.messages]
        text = await asyncio.to_thread(engine.render, messages)
        return JSONResponse({"prompt": text})

    async def models(request: Request, engine: Engine) -> Response:
        return JSONResponse(openai.models(engine))

    async def model(request: Request, engine: Engine) -> Response:
        (entry,) = openai.models(engine)["data"]
        if request.path_params["name"] != entry["id"]:
            name = request.path_params["name"]
            raise Refused(
                404,
                f"there is no model {name!r:.80}: use {entry['id']!r}",
                "not_found_error",
            )
        return JSONResponse(entry)

    async def props(request: Request, engine: Engine) -> Response:
        return JSONResponse(properties(engine))

    async def slots(request: Request, engine: Engine) -> Response:
        return JSONResponse([slot._asdict() for slot in engine.scheduler.slots()])

    async def counts(request: Request, engine: Engine) -> Response:
        text = metrics.exposition(engine)
        return Response(text, media_type=metrics.CONTENT_TYPE)

    async def description(request: Request) -> Response:
        return JSONResponse(openapi.document(openapi.described(ENDPOINTS)))

    return Starlette(
        routes=[
            Route(openapi.PATH, description),
            Route("/health", health),
            Route("/v1/health", health),
            *page_routes(),  # Ollama's clients ask HEAD / first
            route("/v1/chat/completions", chat),
            route("/chat/completions", chat),
            route("/v1/completions", complete),
            route("/completions", complete),
            route("/v1/models", models, "GET"),
            route("/models", models, "GET"),
            route("/v1/models/{name:path}", model, "GET"),
            route("/tokenize", tokenize),
            route("/detokenize", detokenize),
            route("/apply-template", apply_template),
            route("/props", props, "GET"),
            route("/slots", slots, "GET"),
            route("/metrics", counts, "GET"),
            *map(listed, ENDPOINTS),
        ],
        middleware=[Middleware(Guard, access=serving.access)],
        exception_handlers={HTTPException: _http_error, Exception: _bug},
    )


def properties(engine: Engine) -> dict[str, Any]:
    """GET /props."""
    runtime = engine.runtime
    session = runtime.session
    return {
        "model": engine.name,
        "n_ctx": engine.n_ctx,
        "total_slots": engine.slots,
        "chat_template": engine.chat_template,
        "build_info": f"edgecs {version('edgecs')}",
        "kernels": engine.loaded.options.kernels,
        "chain": session.chain,
        "tiers": runtime.tiers,
        "off_reason": session.off_reason,
    }


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = f"{request.method} {request.url.path}"
    text = f"{path!r:.120}: {error.detail}; the paths are in docs/server.md"
    kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    headers = dict(error.headers or {})
    refused = Refused(error.status_code, text, kind, headers=headers)
    return error_response(refused, request.url.path)


def _bug(request: Request, error: Exception) -> Response:
    text = "internal error: see the server's log"
    return error_response(Refused(500, text, "server_error"), request.url.path)
