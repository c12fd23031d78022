"""Memory for the bodies of requests, all together."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

MOST_HELD = 256 << 20  # bytes; chosen: several of the largest bodies at once
_HELD = "edgecs_held"


class Intake:
    """Bytes of bodies that are received or answered; `most` of them at once.

    A single body fits, however large, if there is no other.
    """

    def __init__(self, most: int = MOST_HELD) -> None:
        self.most, self.held = most, 0

    def take(self, scope: Scope, size: int) -> bool:
        """Count bytes of a request; False: there is no room for them."""
        state = scope.setdefault("state", {})
        mine = state.get(_HELD, 0)
        if self.held > mine and self.held + size > self.most:
            return False
        self.held += size
        state[_HELD] = mine + size
        return True

    def give_back(self, scope: Scope) -> None:
        """End a request."""
        self.held -= scope.get("state", {}).pop(_HELD, 0)


class Releasing:
    """Middleware that gives back what a request held."""

    def __init__(self, app: ASGIApp, intake: Intake) -> None:
        self._app, self._intake = app, intake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        scope.setdefault("state", {})
        try:
            await self._app(scope, receive, send)
        finally:
            self._intake.give_back(scope)
