"""The web page: its files, and the headers that they are sent with.

The files are open without an API key, as they contain no secret; what the page asks of
the API needs one. Media types are stated here, since those of `mimetypes` depend on the
machine, and `nosniff` makes a wrong one fatal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_PAGE = "text/html; charset=utf-8"
_TYPES: Mapping[str, str] = {
    "index.html": _PAGE,
    "app.js": "text/javascript; charset=utf-8",
    "app.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "licenses.txt": "text/plain; charset=utf-8",
}
PATHS: Mapping[str, str] = {
    "/" if name == "index.html" else f"/{name}": name for name in _TYPES
}
"""The file of each path."""

# Scripts, styles and requests of this server only, and none within the page itself.
# Trusted Types let nothing but DOMPurify turn text into elements.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
_HEADERS: Mapping[str, str] = {
    "content-security-policy": _POLICY,
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # asks whether the ETag is still the one
}


def page_routes() -> list[Route]:
    """A route for each file of the page."""
    return [_route(path, name) for path, name in PATHS.items()]


def _route(path: str, name: str) -> Route:
    data = (files("edgecs.server") / "page" / "static" / name).read_bytes()
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {**_HEADERS, "etag": tag}

    async def endpoint(request: Request) -> Response:
        if _has(request.headers.get("if-none-match", ""), tag):
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type=_TYPES[name])

    return Route(path, endpoint, methods=["GET"])


def _has(known: str, tag: str) -> bool:
    """Whether If-None-Match names a tag; proxies may have made it weak."""
    tags = {one.strip().removeprefix("W/") for one in known.split(",")}
    return tag in tags or "*" in tags
