"""Access control: host and origin checks, the API key, CORS.

A web page can send requests to 127.0.0.1 and, through DNS rebinding, read the
responses. Without an API key the Host header must therefore name this server. The
Origin header must be allowed; other origins get no CORS headers.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgecs.server.http.error_forms import error_response
from edgecs.server.http.local_key import NONCE, PROOF, LocalKey
from edgecs.server.http.replies import Refused
from edgecs.server.web import PATHS

# For load balancers, and the web page, which asks for the key.
_OPEN = frozenset({"/health", "/v1/health", *PATHS})
_METHODS = "GET, POST, OPTIONS"
_HEADERS = "authorization, content-type, x-api-key, anthropic-version"


@dataclass(frozen=True)
class Access:
    """The access rules of a server.

    origins: allowed origins of other pages, "*": all. hosts: more names of the server.
    local: proves the server to clients of the same user, and is a key of theirs.
    """

    api_key: str | None = None
    origins: Collection[str] = ()
    hosts: Collection[str] = field(default_factory=tuple)
    local: LocalKey | None = None

    def refused(self, path: str, headers: Headers) -> Refused | None:
        """The error of a refused request; None if it is allowed."""
        if "content-length" in headers and "transfer-encoding" in headers:
            # A proxy in front may see another end of this request (RFC 9112, 6.3).
            return Refused(
                400,
                "the request has content-length and transfer-encoding: send one",
                headers={"connection": "close"},
            )
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.api_key is None and not self._is_own(host):
            return Refused(
                403,
                f"the host {host!r:.80} is not a name of this server: use 127.0.0.1 "
                "or --allow-host",
                "permission_error",
            )
        if origin is not None and not self.allows(origin, host):
            return Refused(
                403,
                f"the origin {origin!r:.80} is not allowed: use --allow-origin",
                "permission_error",
            )
        if (
            self.api_key is not None
            and path not in _OPEN
            and not self._has_key(headers)
        ):
            return Refused(
                401,
                "the API key is missing or wrong: send Authorization: Bearer KEY",
                "authentication_error",
                headers={"www-authenticate": "Bearer"},
            )
        return None

    def allows(self, origin: str, host: str) -> bool:
        """Whether an origin is this server or an allowed one."""
        if origin in self.origins or "*" in self.origins:
            return True
        # A page that reached this server by another name needs the key, too.
        is_own = self.api_key is not None or self._is_own(host)
        try:
            return urlsplit(origin).netloc == host and is_own
        except ValueError:
            return False

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name == "localhost" or _is_loopback(name) or name in self.hosts

    def _has_key(self, headers: Headers) -> bool:
        assert self.api_key is not None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            given = headers.get("x-api-key", "")
        keys = [self.api_key, *([self.local.key] if self.local else [])]
        sent = given.strip().encode()
        return any(hmac.compare_digest(sent, key.encode()) for key in keys)

    def proof(self, headers: Headers) -> str | None:
        """The proof that a request asks for, see `LocalKey`."""
        nonce = headers.get(NONCE)
        return self.local.proof(nonce) if self.local and nonce else None


class Guard:
    """Middleware that applies the rules of `Access`."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        proof = None if origin else self._access.proof(headers)
        if proof is not None:
            send = _with_header(send, PROOF, proof)
        if (
            scope["method"] == "OPTIONS" and origin is not None
        ):  # a preflight has no key
            allowed = self._access.allows(origin, headers.get("host", ""))
            response = Response(status_code=204 if allowed else 403)
            cors = self._with_cors(send, origin if allowed else None, headers)
            await response(scope, receive, cors)
            return
        refused = self._access.refused(scope["path"], headers)
        if refused is not None:
            response = error_response(refused, scope["path"])
            await response(scope, receive, send)
            return
        await self._app(scope, receive, self._with_cors(send, origin))

    def _with_cors(
        self, send: Send, origin: str | None, asked: Headers | None = None
    ) -> Send:
        """Add the headers for an allowed origin. asked: of a preflight."""
        wanted = (asked or Headers()).get("access-control-request-headers", _HEADERS)

        async def sending(message: Message) -> None:
            if origin is not None and message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["access-control-allow-origin"] = origin
                headers["access-control-allow-methods"] = _METHODS
                headers["access-control-allow-headers"] = wanted
                headers["vary"] = "Origin"
            await send(message)

        return sending


def _with_header(send: Send, name: str, value: str) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)[name] = value
        await send(message)

    return sending


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    return host == "localhost" or _is_loopback(host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
