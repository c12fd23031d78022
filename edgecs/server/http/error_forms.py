"""The bodies of errors in the form of each API.

The path of a request says which API its client uses, so errors that no API raises
itself, such as a missing key or an unknown path, have its form too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from edgecs.server.http.replies import Refused

ErrorForm = Callable[[Refused], dict[str, Any]]

# Anthropic's error types, https://docs.anthropic.com/en/api/errors
_ANTHROPIC: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    501: "api_error",
    503: "overloaded_error",
}


def openai_error(error: Refused) -> dict[str, Any]:
    """OpenAI's form, with the status as `code`."""
    return {
        "error": {
            "message": str(error),
            "type": error.kind,
            "param": error.param,
            "code": error.status,
        }
    }


def anthropic_error(error: Refused) -> dict[str, Any]:
    """Anthropic's form."""
    kind = _ANTHROPIC.get(error.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


def ollama_error(error: Refused) -> dict[str, Any]:
    """Ollama's form."""
    return {"error": str(error)}


def error_form(path: str) -> ErrorForm:
    """The form of the API that has a path."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return anthropic_error
    if path == "/api" or path.startswith("/api/"):
        return ollama_error
    return openai_error


def error_response(error: Refused, path: str) -> Response:
    """The response to a refused request for a path."""
    return JSONResponse(error_form(path)(error), error.status, headers=error.headers)
