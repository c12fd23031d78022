"""The HTTP application: its routes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from edgecs.chat.conversation import Message
from edgecs.errors import EdgecsError
from edgecs.server import (
    anthropic,
    embeddings,
    model_routes,
    ollama,
    ollama_models,
    openai,
    openapi,
    responses,
    state_routes,
)
from edgecs.server.embedding_engine import EmbeddingEngine
from edgecs.server.endpoint import AboutEndpoint, EmbeddingEndpoint, Endpoint
from edgecs.server.engine import Engine
from edgecs.server.error_forms import error_response
from edgecs.server.guard import Access, Guard
from edgecs.server.incidents import incident
from edgecs.server.intake import Intake, Releasing
from edgecs.server.keep_alive import seconds_of
from edgecs.server.pool import ModelPool
from edgecs.server.replies import Refused, body_of, read_body, refusal, unless_gone
from edgecs.server.requested_tools import told, tool_use
from edgecs.server.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Named,
    TemplateRequest,
    TokenizeRequest,
    Turn,
)
from edgecs.server.served import Served
from edgecs.server.web import page_routes

MOST_BODY = 16 << 20  # bytes
MOST_SECONDS = 3600.0  # time limit of an answer

ENDPOINTS: tuple[Endpoint, ...] = (
    *anthropic.ENDPOINTS,
    *ollama.ENDPOINTS,
    *responses.ENDPOINTS,
)
ABOUT: tuple[AboutEndpoint, ...] = ollama_models.ENDPOINTS

Answer = Callable[[Request, Any], Awaitable[Response]]
About = Callable[[Request, ModelPool, int], Awaitable[Response]]


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

    def route(
        path: str, answer: Answer, kind: type[Engine | EmbeddingEngine] | None = Engine
    ) -> Route:
        return Route(path, _Answering(serving, pool, answer, kind), methods=["POST"])

    def about(path: str, answer: About, method: str = "GET") -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                return await answer(request, pool, serving.most_body)
            except Refused as error:
                return error_response(error, request.url.path)
            except EdgecsError as error:
                return error_response(refusal(error), request.url.path)

        return Route(path, endpoint, methods=[method])

    def listed(one: Endpoint) -> Route:
        async def answer(request: Request, engine: Engine) -> Response:
            assert one.body is not None
            asked = await read_body(request, one.body, serving.most_body)
            return await one.handler(engine, request, asked, serving.most_seconds)

        return route(one.path, answer)

    def embeds(one: EmbeddingEndpoint) -> Route:
        async def answer(request: Request, engine: EmbeddingEngine) -> Response:
            asked = await read_body(request, one.body, serving.most_body)
            return await one.handler(engine, request, asked, serving.most_seconds)

        return route(one.path, answer, EmbeddingEngine)

    def listed_about(one: AboutEndpoint) -> Route:
        async def answer(request: Request, pool: ModelPool, most: int) -> Response:
            asked = await read_body(request, one.body, most) if one.body else None
            return await one.handler(pool, request, asked)

        return about(one.path, answer, one.method)

    async def health(request: Request) -> Response:
        if serving.is_starting:
            return error_response(_starting(), request.url.path)
        return JSONResponse({"status": "ok"})

    async def chat(request: Request, engine: Engine) -> Response:
        asked = await read_body(request, ChatRequest, serving.most_body)
        return await openai.chat(engine, request, asked, serving.most_seconds)

    async def complete(request: Request, engine: Engine) -> Response:
        asked = await read_body(request, CompletionRequest, serving.most_body)
        return await openai.complete(engine, request, asked, serving.most_seconds)

    async def tokenize(request: Request, engine: Served) -> Response:
        asked = await read_body(request, TokenizeRequest, serving.most_body)
        ids = await asyncio.to_thread(
            engine.encode, asked.content, document=asked.add_special
        )
        tokens: list[Any] = ids.tolist()
        if asked.with_pieces:
            tokens = [{"id": one, "piece": engine.decode([one])} for one in tokens]
        return JSONResponse({"tokens": tokens})

    async def detokenize(request: Request, engine: Served) -> Response:
        asked = await read_body(request, DetokenizeRequest, serving.most_body)
        text = await asyncio.to_thread(engine.decode, asked.tokens)
        return JSONResponse({"content": text})

    async def apply_template(request: Request, engine: Engine) -> Response:
        asked = await read_body(request, TemplateRequest, serving.most_body)
        use = tool_use(engine.family, asked)
        messages, tools = told(engine.family, asked.messages, use)
        text = await asyncio.to_thread(engine.render, messages, tools)
        reply: dict[str, Any] = {"prompt": text}
        if asked.with_tokens:
            if use is not None:
                encode = partial(engine.encode_chat, messages, tools=tools)
                reply |= {"tokens": (await asyncio.to_thread(encode)).tolist()}
                return JSONResponse(reply)
            turns = [_turn_of(message) for message in asked.messages]
            prompt = await asyncio.to_thread(engine.encode_turns, turns, asked.partial)
            reply |= {"tokens": prompt.tokens.tolist(), "again": prompt.again}
        return JSONResponse(reply)

    async def description(request: Request) -> Response:
        return JSONResponse(
            openapi.document(
                openapi.described((*ENDPOINTS, *embeddings.ENDPOINTS, *ABOUT))
            )
        )

    app = Starlette(
        routes=[
            Route(openapi.PATH, description),
            Route("/health", health),
            Route("/v1/health", health),
            *page_routes(),  # Ollama's clients ask HEAD / first
            route("/v1/chat/completions", chat),
            route("/chat/completions", chat),
            route("/v1/completions", complete),
            route("/completions", complete),
            about("/v1/models", model_routes.listed),
            about("/models", model_routes.listed),
            about("/v1/models/{name:path}", model_routes.one),
            about("/models/load", model_routes.load, "POST"),
            about("/models/unload", model_routes.unload, "POST"),
            route("/tokenize", tokenize, None),
            route("/detokenize", detokenize, None),
            route("/apply-template", apply_template),
            about("/props", state_routes.props),
            about("/slots", state_routes.slots),
            about("/metrics", state_routes.counts),
            *map(listed, ENDPOINTS),
            *map(embeds, embeddings.ENDPOINTS),
            *map(listed_about, ABOUT),
        ],
        middleware=[
            Middleware(Guard, access=serving.access),
            Middleware(Releasing, intake=serving.intake),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _bug},
    )
    app.state.intake = serving.intake  # for `read_body`
    return app


class _Answering:
    """A route whose answers need an engine, which stays until they are sent.

    kind: of the engine; None: any.
    """

    def __init__(
        self,
        serving: Serving,
        pool: ModelPool,
        answer: Answer,
        kind: type[Engine | EmbeddingEngine] | None,
    ) -> None:
        self._serving, self._pool, self._answer = serving, pool, answer
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        request = Request(scope, receive, send)
        async with AsyncExitStack() as stack:
            try:
                engine = await self._engine(request, stack)
                if self._kind is not None and not isinstance(engine, self._kind):
                    raise _other_kind(engine)
                response = await self._answer(request, engine)
            except Refused as error:
                response = error_response(error, request.url.path)
            except EdgecsError as error:
                response = error_response(refusal(error), request.url.path)
            await response(scope, receive, send)

    async def _engine(self, request: Request, stack: AsyncExitStack) -> Served:
        """The engine that a request names; it is not loaded for a client that left."""
        if self._serving.is_starting and self._pool.only_default:
            raise _starting()
        named = _named(await body_of(request, self._serving.most_body))
        keep = seconds_of(named.keep_alive) if named.keep_alive is not None else ...
        acquired = self._pool.acquire(named.model, keep)
        return await unless_gone(request, stack.enter_async_context(acquired))


def _turn_of(message: Turn) -> Message:
    plain, ids = message.plain(), message.ids
    return Message(plain["role"], plain["content"], tuple(ids) if ids else None)


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
