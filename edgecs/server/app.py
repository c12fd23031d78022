"""The HTTP application: its routes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from edgecs.errors import EdgecsError
from edgecs.server.answers.schemas import Named
from edgecs.server.apis import (
    embeddings,
    model_routes,
    openapi,
    state_routes,
    text_routes,
)
from edgecs.server.apis.anthropic import routes as anthropic
from edgecs.server.apis.endpoint import AboutEndpoint, Endpoint
from edgecs.server.apis.llama import routes as llama
from edgecs.server.apis.ollama import models as ollama_models
from edgecs.server.apis.ollama import routes as ollama
from edgecs.server.apis.openai import routes as openai
from edgecs.server.apis.responses import routes as responses
from edgecs.server.http.error_forms import error_response
from edgecs.server.http.guard import Access, Guard
from edgecs.server.http.incidents import incident
from edgecs.server.http.intake import Intake, Releasing
from edgecs.server.http.replies import Refused, body_of, read_body, refusal, unless_gone
from edgecs.server.models.embedding_engine import EmbeddingEngine
from edgecs.server.models.keep_alive import seconds_of
from edgecs.server.models.pool import ModelPool
from edgecs.server.models.served import Served
from edgecs.server.web import page_routes

E = TypeVar("E", Endpoint, AboutEndpoint)

MOST_BODY = 16 << 20  # bytes
MOST_SECONDS = 3600.0  # time limit of an answer

ENDPOINTS: tuple[Endpoint, ...] = (
    *openai.ENDPOINTS,
    *responses.ENDPOINTS,
    *anthropic.ENDPOINTS,
    *ollama.ENDPOINTS,
    *llama.ENDPOINTS,
    *embeddings.ENDPOINTS,
    *text_routes.ENDPOINTS,
)
ABOUT: tuple[AboutEndpoint, ...] = (
    *model_routes.ENDPOINTS,
    *state_routes.ENDPOINTS,
    *ollama_models.ENDPOINTS,
)


@dataclass
class Serving:
    """The state of the application.

    pool: set before the application is created. is_starting: whether the model that is
    loaded at the start is not there yet.
    """

    pool: ModelPool | None = None
    is_starting: bool = False
    access: Access = field(default_factory=Access)
    most_body: int = MOST_BODY
    intake: Intake = field(default_factory=Intake)
    most_seconds: float = MOST_SECONDS


def create_app(serving: Serving) -> Starlette:
    """The application. All errors are JSON in the form of their API."""
    assert serving.pool is not None
    pool = serving.pool

    async def health(request: Request) -> Response:
        if serving.is_starting:
            return error_response(_starting(), request.url.path)
        return JSONResponse({"status": "ok"})

    async def description(request: Request) -> Response:
        found = openapi.described((*ENDPOINTS, *ABOUT))
        return JSONResponse(openapi.document(found))

    def route(one: Endpoint | AboutEndpoint) -> Route:
        answering: ASGIApp
        if isinstance(one, Endpoint):
            answering = _Answering(serving, pool, one)
        else:
            answering = _About(serving, pool, one)
        return Route(one.path, answering, methods=[one.method])

    app = Starlette(
        routes=[
            Route(openapi.PATH, description),
            Route("/health", health),
            Route("/v1/health", health),
            *page_routes(),  # Ollama's clients ask HEAD / first
            *map(route, ENDPOINTS),
            *map(route, ABOUT),
        ],
        middleware=[
            Middleware(Guard, access=serving.access),
            Middleware(Releasing, intake=serving.intake),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _bug},
    )
    app.state.intake = serving.intake  # for `read_body`
    return app


class _Routed(ABC, Generic[E]):
    """A route of an endpoint."""

    def __init__(self, serving: Serving, pool: ModelPool, endpoint: E) -> None:
        self._serving, self._pool = serving, pool
        self._endpoint: E = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        request = Request(scope, receive, send)
        async with AsyncExitStack() as stack:
            try:
                response = await self._response(request, stack)
            except Refused as error:
                response = error_response(error, request.url.path)
            except EdgecsError as error:
                response = error_response(refusal(error), request.url.path)
            await response(scope, receive, send)

    @abstractmethod
    async def _response(self, request: Request, stack: AsyncExitStack) -> Response:
        """The response; the stack is left when it is sent. Raises Refused."""

    async def _body(self, request: Request) -> Any:
        """The validated body of a request; None: it has none. Raises Refused."""
        if (kind := self._endpoint.body) is None:
            return None
        return await read_body(request, kind, self._serving.most_body)


class _About(_Routed[AboutEndpoint]):
    """A route about the server or its models."""

    async def _response(self, request: Request, stack: AsyncExitStack) -> Response:
        asked = await self._body(request)
        return await self._endpoint.handler(self._pool, request, asked)


class _Answering(_Routed[Endpoint]):
    """A route whose answers need an engine, which stays until they are sent."""

    async def _response(self, request: Request, stack: AsyncExitStack) -> Response:
        if self._serving.is_starting and self._pool.only_default:
            raise _starting()
        one = self._endpoint
        named = _named(await body_of(request, self._serving.most_body))
        keep = seconds_of(named.keep_alive) if named.keep_alive is not None else ...
        if keep == 0 and one.unload is not None:
            done = await one.unload(self._pool, await self._body(request))
            if done is not None:
                return done
        # It is not loaded for a client that left.
        acquired = stack.enter_async_context(self._pool.acquire(named.model, keep))
        engine = await unless_gone(request, acquired)
        if one.kind is not None and not isinstance(engine, one.kind):
            raise _other_kind(engine)
        # Only now: a body takes more memory once it is parsed than while it waits.
        asked = await self._body(request)
        return await one.handler(engine, request, asked, self._serving.most_seconds)


def _named(body: bytes) -> Named:
    """The model of a body; a malformed body is refused by the route, with details."""
    try:
        return Named.model_validate_json(body)
    except ValidationError:
        return Named()


def _other_kind(engine: Served) -> Refused:
    """The response of a model that is not for what was asked."""
    if isinstance(engine, EmbeddingEngine):
        does, instead = "gives embeddings and writes no text", "use /v1/embeddings"
    else:
        does = "writes text and gives no embeddings: its file states no pooling"
        instead = "embedding models do, such as nomic-embed-text or qwen3-embedding"
    return Refused(400, f"the model {engine.name!r:.200} {does}; {instead}")


def _starting() -> Refused:
    return Refused(503, "Loading model", "unavailable_error")


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = f"{request.method} {request.url.path}"
    text = f"{path!r:.120}: {error.detail}; the paths are in docs/server.md"
    kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    headers = dict(error.headers or {})
    refused = Refused(error.status_code, text, kind, headers=headers)
    return error_response(refused, request.url.path)


def _bug(request: Request, error: Exception) -> Response:
    told = incident(f"{request.method} {request.url.path!r:.120} failed", error)
    return error_response(refusal(told), request.url.path)
