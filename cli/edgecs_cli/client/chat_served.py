"""`edgecs chat` with a running server: the model is not loaded a second time.

The conversation is here, as ids, and so are its rules: what is left out of a context
that is full, where an answer stops, what a saved conversation has. The server renders
the template, tokenises and generates.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np

from edgecs.chat.archive import Owner
from edgecs.chat.conversation import Message, Prompt, Turns, checked_ids
from edgecs.core.context import Tokens
from edgecs.errors import Cancelled, ConfigError
from edgecs.session.answer import FinishReason, Token
from edgecs.toolcalls.form import AnswerForm
from edgecs_cli.chat.talk import Spec, Start, Talk
from edgecs_cli.client.answered import Answered, lost
from edgecs_cli.client.choice import NotServed, connected, request_of
from edgecs_cli.client.connection import ServerLost, ServerRefused
from edgecs_cli.client.link import Link
from edgecs_cli.client.stream import Stream
from edgecs_cli.client.thoughts import marks_of
from edgecs_cli.options.recipe import Call
from edgecs_cli.options.sampling import read_sampling
from edgecs_cli.options.shared import Interrupt
from edgecs_cli.origins import Origins
from edgecs_cli.short_lines import BETWEEN, Report, served_line

Fields = Mapping[str, Any]
"""The fields of a request that say how tokens are chosen."""


@contextmanager
def open_served(
    values: Mapping[str, Any], start: Start, call: Call, interrupt: Interrupt
) -> Iterator[ServedTalk]:
    """A conversation with the server that the options name or that is found.

    interrupt: its first Ctrl-C ends an answer. Raises NotServed; EdgecsError for a
    server that was given by its URL.
    """
    link = Link(values, call, connected(values, call, loud=True))
    try:
        try:
            talk = ServedTalk(link, values, start, call, interrupt.event)
        except (NotServed, ServerLost, ServerRefused) as error:
            if values["server"] == "auto":
                raise NotServed(str(error)) from error
            raise ConfigError(f"{values['server']}: {error}") from error
        interrupt.on_stop = link.abort
        yield talk
    finally:
        interrupt.on_stop = None
        link.close()


class ServedTurns(Turns):
    """Messages whose prompt the server makes, with the ids of earlier answers."""

    def __init__(self, link: Link, stopped: threading.Event) -> None:
        form = AnswerForm.of(link.model.template)
        super().__init__(form, marks_of(form, link.call))
        self._link, self._stopped = link, stopped

    def prompt(self, partial: Sequence[int] = ()) -> Prompt:
        """The ids of the prompt. Raises ServerLost, ServerRefused, Cancelled."""
        fed = [_turn(message) for message in self.messages if not message.left_out]
        body = {"messages": fed, "with_tokens": True, "partial": list(partial)}
        try:
            reply = self._link.call("/apply-template", body)
        except ServerLost:
            if self._stopped.is_set():
                raise Cancelled("stopped before the first token") from None
            raise
        url, size = self._link.model.connection.url, self._link.model.weights.tokens
        text, again = reply.get("prompt"), reply.get("again")
        if not (isinstance(text, str) and type(again) is int):
            raise lost(url)
        try:
            tokens = checked_ids(reply["tokens"], size)
        except (KeyError, TypeError, ValueError) as error:
            raise lost(url) from error
        thinks = self.form.opened(text)
        return Prompt(np.array(tokens, dtype=np.int32), again, thinks)


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.fed}
    return turn if message.ids is None else {**turn, "ids": list(message.ids)}


class ServedSession:
    """Answers of a server for a `Chat`, as `Session` gives those of a model here.

    stop: texts that end an answer. stopped: ends it early.
    """

    def __init__(
        self, link: Link, stop: Sequence[str], stopped: threading.Event
    ) -> None:
        self._link, self._stop, self._stopped = link, stop, stopped
        self.finish_reason: FinishReason | None = None
        self._bytes: dict[int, bytes] = {}  # of the tokens of the answer
        self._stream: Stream | None = None

    @property
    def n_ctx(self) -> int:
        """Tokens that the context of a conversation holds."""
        return self._link.model.n_ctx

    @property
    def answered(self) -> Answered:
        """Counts and times of the last answer."""
        if self._stream is None:
            return Answered(chain=self._link.model.chain)
        return self._stream.answered

    def piece(self, token: int) -> bytes:
        """The text of a token of the last answer."""
        return self._bytes[token]

    def generate(
        self,
        prompt: Sequence[int] | Tokens,
        *,
        max_tokens: int | None = None,
        rule: Fields | None = None,
        logprobs: int | None = None,
    ) -> Generator[Token]:
        """Yields the answer to `prompt`, see `Session.generate`.

        logprobs: are not asked for. Raises ServerLost, ServerRefused.
        """
        self.finish_reason, self._bytes = None, {}
        body = {**(rule or {}), "prompt": [int(token) for token in prompt]}
        body["stop"] = list(self._stop) or None
        stream = self._stream = Stream(
            self._link.connected(), body, max_tokens=max_tokens, detailed=True
        )
        try:
            with closing(stream.pieces()) as pieces:
                for piece in pieces:
                    if self._stopped.is_set():
                        break
                    self._bytes[piece.id] = piece.data
                    self.finish_reason = _reason(piece.ends)
                    yield Token(piece.id, piece.text, piece.source)
        except ServerLost as error:
            if not self._stopped.is_set():
                raise self._told(error) from error
        if self.finish_reason is None:
            ended = _reason(stream.reason)
            self.finish_reason = "cancelled" if self._stopped.is_set() else ended

    def _told(self, error: ServerLost) -> ServerLost:
        kept = "what has arrived is kept, and " if self._bytes else ""
        return ServerLost(f"{error}; {kept}the next question tries again")


def _reason(stated: str | None) -> FinishReason | None:
    known: dict[str | None, FinishReason] = {
        "stop": "stop",
        "length": "length",
        "context": "context",
        "cancelled": "cancelled",
    }
    return known.get(stated)


class ServedTalk(Talk[Fields]):
    """A conversation with a model of a server.

    Raises ServerLost, ServerRefused if its template cannot be used.
    """

    def __init__(
        self,
        link: Link,
        values: Mapping[str, Any],
        start: Start,
        call: Call,
        stopped: threading.Event,
    ) -> None:
        self._link, self._values, self._call = link, values, call
        self._session = ServedSession(link, start.stop, stopped)
        turns = ServedTurns(link, stopped)
        off = values["no_spec"] or link.model.off_reason is not None
        super().__init__(
            self._session,
            turns,
            start,
            read_sampling(dict(values)),
            "off" if off else "auto",
        )
        self._rule()  # an option that no request can have is found now
        _ = self.thinks_at_once  # a template that cannot be used is found now

    def start_line(self) -> str:
        """The model, its server, its context size, and whether speculation is on."""
        off = self._link.model.off_reason
        if off is None and self.spec == "off":
            off = "not asked for"
        said = "speculation on" if off is None else f"speculation off ({off})"
        return BETWEEN.join([self._served_line(), said])

    def _served_line(self) -> str:
        model = self._link.model
        return served_line(model.weights.model, model.connection.url, model.n_ctx)

    def details(self) -> list[str]:
        """Kernels, sampling, drafters, exactness."""
        model, sampling = self._link.model, self.sampling
        law = f"temperature {sampling.temperature:g}, seed {sampling.seed}"
        return [
            f"model: {model.weights.model}",
            f"kernels: {model.kernels}",
            f"sampling: {'greedy' if sampling.is_greedy else law}",
            f"drafts: {' <- '.join(model.chain)}",
            f"exactness: {model.tiers}",
        ]

    @property
    def stats(self) -> Report:
        """Counts and times of the last answer."""
        return self._session.answered

    @property
    def chain(self) -> list[str]:
        """Names of the target and its drafters."""
        return [*self._link.model.chain]

    def origins(self) -> Origins:
        """Where the tokens of the last answer come from."""
        return self._session.answered.origins(self._link.model.tiers)

    def owner(self) -> Owner:
        """The model that saved conversations belong to."""
        weights = self._link.model.weights
        return Owner(
            weights.model, weights.fingerprint, weights.loading, weights.tokens
        )

    def find(self, model: str) -> None:
        """Finds another model on a server, or a file of it. Raises EdgecsError."""
        try:
            found = connected({**self._values, "model": model}, self._call)
        except NotServed:
            from edgecs_cli.chat.local import check_model

            check_model(model, offline=self._start.offline)
        else:
            found.connection.close()

    def _rule(self) -> Fields:
        speculative = self.spec != "off"
        return request_of(self._values, self.seeded(), speculative=speculative)

    def _apply(self, spec: Spec) -> None:
        if spec == "on":
            raise ConfigError(
                "a server drafts where that pays: use /spec auto or /spec off"
            )
