"""A model of a server over the turns of a chat, each with a connection of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecs_cli.client.choice import NotServed, Served, connected
from edgecs_cli.client.connection import ServerLost
from edgecs_cli.options.recipe import Call


class Link:
    """Connects again whenever the last connection has ended.

    So a chat outlives its server: the next turn finds it again, or another one that
    would answer the same. model: the first connection.
    """

    def __init__(self, values: Mapping[str, Any], call: Call, model: Served) -> None:
        self._values, self._call, self._model = values, call, model

    @property
    def model(self) -> Served:
        """The model as it was described last; its connection may have ended."""
        return self._model

    def connected(self) -> Served:
        """The model with a connection. Raises ServerLost, ServerRefused, ConfigError.

        A server that has other weights now is `ServerLost`, as the ids of the
        conversation may mean something else there.
        """
        before = self._model
        if before.connection.is_open:
            return before
        try:
            now = connected(self._values, self._call)
        except NotServed as why:
            raise ServerLost(
                f"no server of yours answers for {before.name} any more: start it "
                f"again and repeat the question, or load the model here (/model "
                f"{self._values['model']})"
            ) from why
        if now.weights != before.weights:
            now.connection.close()
            raise ServerLost(
                f"{now.connection.url} has another model as {now.name} now: use it "
                f"with /model {self._values['model']}"
            )
        self._model = now
        return now

    def call(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON of a response. Raises as `connected`.

        A connection that was idle may have been closed by the server, so then the
        request is sent again.
        """
        was_open = self._model.connection.is_open
        model = self.connected()
        try:
            return model.connection.call("POST", path, {**body, "model": model.name})
        except ServerLost:
            model.connection.close()
            if not was_open:
                raise
        model = self.connected()
        return model.connection.call("POST", path, {**body, "model": model.name})

    def abort(self) -> None:
        """Ends what is waited for; may be called in a signal handler."""
        self._model.connection.abort()

    def close(self) -> None:
        """Closes the connection."""
        self._model.connection.close()
