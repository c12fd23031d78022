"""One answer of a server while it streams."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import Any

from edgecs_cli.client.answered import Answered, Piece, answered_of, lost, pieces_of
from edgecs_cli.client.choice import Served
from edgecs_cli.client.connection import ServerLost


class Stream:
    """The answer to a request for /v1/completions.

    body: of the request, without the fields about streams. max_tokens: None: until the
    model stops. detailed: whether tokens have ids and sources, or only texts.

    After the last piece `answered` has the counts of the server and `reason` says why
    it ended. An answer that is cut off has what was counted here.
    """

    def __init__(
        self,
        model: Served,
        body: Mapping[str, Any],
        *,
        max_tokens: int | None,
        detailed: bool,
    ) -> None:
        self.answered = Answered(chain=model.chain)
        self.reason: str | None = None
        self._model, self._url, self._detailed = model, model.connection.url, detailed
        self._max_tokens, self._seen = max_tokens, 0  # tokens
        self._body = {**body, "model": model.name, "stream": True}
        self._body["token_details"] = detailed
        if max_tokens is not None:
            self._body["max_tokens"] = max_tokens
        self._began = self._first = time.perf_counter()

    def pieces(self) -> Generator[Piece]:
        """The tokens as they arrive. Raises ServerLost, ServerRefused.

        `reason` and `answered` are known before the last token is yielded, where that
        says that it is the last one. Closing this ends the answer.
        """
        with closing(self._choices()) as choices:
            for choice in choices:
                found = pieces_of(choice, detailed=self._detailed, url=self._url)
                self._count(len(found), choice)
                for piece in found:
                    if piece.ends is not None:
                        self._finish(choices, piece.ends)
                    yield piece
                    if piece.ends is not None:
                        return

    def _choices(self) -> Generator[dict[str, Any]]:
        """The choice of every event; the counts of the last one are kept."""
        with closing(
            self._model.connection.events("/v1/completions", self._body)
        ) as events:
            for event in events:
                choices = event.get("choices")
                if not (isinstance(choices, list) and choices):
                    raise lost(self._url)
                choice = choices[0]
                if not isinstance(choice, dict):
                    raise lost(self._url)
                if choice.get("finish_reason") is not None:
                    self.answered = answered_of(event)
                    if self._detailed:  # then all of them were counted here
                        self.answered.tokens = self._seen
                    self.reason = self.reason or self._reason(choice["finish_reason"])
                    yield choice
                    return
                yield choice
        raise lost(self._url)

    def _finish(self, choices: Generator[dict[str, Any]], reason: str) -> None:
        """Waits for the counts of an answer whose last token is known."""
        self.reason = reason
        for choice in choices:
            if pieces_of(choice, detailed=self._detailed, url=self._url):
                raise ServerLost(f"{self._url} goes on after the end of its answer")

    def _count(self, pieces: int, choice: Mapping[str, Any]) -> None:
        """Counts what was sent, which is bounded. Raises ServerLost."""
        if choice.get("finish_reason") is not None and not pieces:
            return
        self._seen += max(1, pieces)  # an event has at least one token
        limit = self._model.n_ctx + 1
        if self._max_tokens is not None:
            limit = min(limit, max(1, self._max_tokens))
        if self._seen > limit:
            raise ServerLost(f"{self._url} sends more tokens than were asked for")
        if choice.get("finish_reason") is not None:
            return
        now = time.perf_counter()
        if self._seen == max(1, pieces):
            self._first = now
        about, seconds = self.answered, now - self._first
        about.tokens, about.prompt_seconds = self._seen, self._first - self._began
        about.tokens_per_second = (self._seen - 1) / seconds if seconds > 0 else 0.0

    def _reason(self, stated: Any) -> str:
        """Why an answer ended; OpenAI's API has one word for three reasons."""
        if stated == "stop":
            return "stop"
        about, most = self.answered, self._max_tokens
        if most is not None and most <= about.tokens:
            return "length"
        full = about.prompt_tokens + about.tokens > self._model.n_ctx
        return "context" if full else "cancelled"
