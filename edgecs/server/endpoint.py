"""What an API says about each of its paths, for the application and its description."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from edgecs.server.embedding_engine import EmbeddingEngine
from edgecs.server.engine import Engine
from edgecs.server.pool import ModelPool

Handler = Callable[[Engine, Request, Any, float], Awaitable[Response]]
"""Gets the engine, the request, its validated body, and the time limit of an answer in
seconds. Raises Refused and EdgecsError."""
EmbeddingHandler = Callable[[EmbeddingEngine, Request, Any, float], Awaitable[Response]]
"""Gets the engine of an embedding model instead, and a time limit in seconds."""
AboutHandler = Callable[[ModelPool, Request, Any], Awaitable[Response]]
"""Gets the pool, the request, and its validated body (None: it has none)."""


class Endpoint(NamedTuple):
    """A path of an API that a model answers.

    summary: one line. answer: what a successful response contains, one line.
    """

    path: str
    handler: Handler
    body: type[BaseModel]
    summary: str
    answer: str = "The result."
    method: str = "POST"


class EmbeddingEndpoint(NamedTuple):
    """A path that an embedding model answers; fields as in `Endpoint`."""

    path: str
    handler: EmbeddingHandler
    body: type[BaseModel]
    summary: str
    answer: str
    method: str = "POST"


class AboutEndpoint(NamedTuple):
    """A path of an API about models, which loads none.

    body: of a POST; None: the path is for GET.
    """

    path: str
    handler: AboutHandler
    body: type[BaseModel] | None
    summary: str
    answer: str = "The result."

    @property
    def method(self) -> str:
        """The HTTP method."""
        return "GET" if self.body is None else "POST"
