"""The OpenAPI document of the server, from the models of its request bodies."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from edgecs.server.apis.endpoint import JSON, AboutEndpoint, Endpoint

PATH = "/openapi.json"
_REFS = "#/components/schemas/{model}"
_MODE: JsonSchemaMode = "validation"
# What a response is where it is not one JSON value.
_STREAMS = {"/v1/": "text/event-stream", "/chat": "text/event-stream"}
_STREAMS |= {"/completions": "text/event-stream", "/api/": "application/x-ndjson"}


class Described(NamedTuple):
    """A path for the document. media_type: of its response."""

    path: str
    method: str
    body: type[BaseModel] | None
    summary: str
    answer: str
    media_type: str = JSON
    needs_key: bool = True


_HEALTH = (None, "Whether the model is loaded.", "It is loaded.", JSON, False)
OWN = (
    Described("/health", "GET", *_HEALTH),
    Described("/v1/health", "GET", *_HEALTH),
    Described(PATH, "GET", None, "This document.", "The document."),
)
"""The paths that no list of endpoints has, without those of the web page."""


class _OpenAIDetails(BaseModel):
    message: str
    type: str
    param: str | None
    code: int


class OpenAIError(BaseModel):
    """An error in OpenAI's form."""

    error: _OpenAIDetails


class _AnthropicDetails(BaseModel):
    type: str
    message: str


class AnthropicError(BaseModel):
    """An error in Anthropic's form."""

    type: Literal["error"]
    error: _AnthropicDetails


class OllamaError(BaseModel):
    """An error in Ollama's form."""

    error: str


def described(endpoints: Iterable[Endpoint | AboutEndpoint]) -> list[Described]:
    """All paths: those of endpoints, and the others."""
    return [*OWN, *map(_described, endpoints)]


def _described(one: Endpoint | AboutEndpoint) -> Described:
    path = one.path.replace(":path", "")  # Starlette's type of a parameter
    about = (one.body, one.summary, one.answer, one.media_type)
    return Described(path, one.method, *about)


def document(paths: Iterable[Described]) -> dict[str, Any]:
    """The OpenAPI document of some paths."""
    paths = list(paths)
    models = dict.fromkeys(one.body for one in paths if one.body is not None)
    every: list[type[BaseModel]] = [*models, OpenAIError, AnthropicError, OllamaError]
    pairs = [(model, _MODE) for model in every]
    refs, schemas = models_json_schema(pairs, ref_template=_REFS)
    operations: dict[str, Any] = {}
    for one in paths:
        body = refs[one.body, _MODE] if one.body else None
        error = refs[_error_of(one.path), _MODE]
        operation = _operation(one, body, error)
        operations.setdefault(one.path, {})[one.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "edgecs", "version": version("edgecs")},
        "paths": operations,
        "security": [{}, {"bearer": []}, {"key": []}],
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _error_of(path: str) -> type[BaseModel]:
    if path.startswith("/v1/messages"):
        return AnthropicError
    return OllamaError if path.startswith("/api/") else OpenAIError


def _operation(one: Described, body: Any, error: Any) -> dict[str, Any]:
    failed = {
        "description": "An error.",
        "content": {JSON: {"schema": error}},
    }
    made: dict[str, Any] = {
        "summary": one.summary,
        "operationId": f"{one.method.lower()}{one.path}",
        "responses": {"200": _success(one), "4XX": failed, "5XX": failed},
    }
    if body is not None:
        made["requestBody"] = {"required": True, "content": {JSON: {"schema": body}}}
    if "{name}" in one.path:
        text = {"type": "string", "minLength": 1}
        parameter = {"name": "name", "in": "path", "required": True, "schema": text}
        made["parameters"] = [parameter]
    return made if one.needs_key else {**made, "security": []}


def _success(one: Described) -> dict[str, Any]:
    content: dict[str, Any] = {one.media_type: {}} if one.media_type else {}
    if one.body is not None and "stream" in one.body.model_fields:
        for beginning, kind in _STREAMS.items():
            if one.path.startswith(beginning):
                content[kind] = {}
    success: dict[str, Any] = {"description": one.answer}
    return {**success, "content": content} if content else success
