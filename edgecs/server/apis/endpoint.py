"""What an API says about each of its paths, for the application and its description."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from edgecs.server.models.embedding_engine import EmbeddingEngine
from edgecs.server.models.engine import Engine
from edgecs.server.models.pool import ModelPool

JSON = "application/json"

Handler = Callable[[Any, Request, Any, float], Awaitable[Response]]
"""Gets an engine of the endpoint's kind, the request, its validated body, and the time
limit of an answer in seconds. Raises Refused and EdgecsError."""
Unload = Callable[[ModelPool, Any], Awaitable[Response | None]]
"""Gets the pool, and the validated body of a request after which the model is not kept.
Answers it if it needs no model; else None. Raises EdgecsError."""
AboutHandler = Callable[[ModelPool, Request, Any], Awaitable[Response]]
"""Gets the pool, the request, and its validated body (None: it has none)."""


class Endpoint(NamedTuple):
    """A path that a model answers.

    summary: one line. answer: what a successful response contains, one line. kind: of
    the engine; None: any.
    """

    path: str
    handler: Handler
    body: type[BaseModel]
    summary: str
    answer: str = "The result."
    kind: type[Engine | EmbeddingEngine] | None = Engine
    unload: Unload | None = None
    method: str = "POST"
    media_type: str = JSON


class AboutEndpoint(NamedTuple):
    """A path about the server or its models; fields as in `Endpoint`.

    body: of a POST; None: the path is for GET. media_type: of the response.
    """

    path: str
    handler: AboutHandler
    body: type[BaseModel] | None
    summary: str
    answer: str = "The result."
    media_type: str = JSON

    @property
    def method(self) -> str:
        """The HTTP method."""
        return "GET" if self.body is None else "POST"
