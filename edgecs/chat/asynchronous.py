"""Answers for an event loop: the engine computes in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

from edgecs.chat.chat import Asked, Chat
from edgecs.chat.conversation import Message
from edgecs.errors import ModelError
from edgecs.sampling.chain import Rule
from edgecs.session.answer import FinishReason, Token
from edgecs.session.session import Session

P = ParamSpec("P")
R = TypeVar("R")


class EngineThread:
    """The one thread in which a session computes for event loops; can be closed.

    There is one because an engine computes one answer at a time: steps of several
    answers are serialised.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._thread = ThreadPoolExecutor(1, "edgecs")
        self._lock = threading.Lock()
        self._stepping: Generator[Token] | None = None  # the answer being computed

    async def stream(
        self, begin: Callable[[], Generator[Token]]
    ) -> AsyncGenerator[Token, None]:
        """The tokens of the answer that `begin` returns; it is called in the thread.

        Closing this, or cancelling the task that reads it, ends this answer within a
        round; later answers continue.
        """
        answer = await self._run(begin)
        try:
            while token := await self._run(self._step, answer):
                yield token
        finally:
            with self._lock:  # the step cannot change meanwhile
                if self._stepping is answer:
                    self._session.interrupt()
            with suppress(ModelError):  # closing the model has ended it
                await asyncio.shield(self._run(answer.close))

    def close(self) -> None:
        """Waits for the current step, and ends the thread; may be called again."""
        self._thread.shutdown()

    def _run(
        self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[R]:
        try:
            future = self._thread.submit(function, *args, **kwargs)
        except RuntimeError as error:  # it was shut down
            raise ModelError("this model was closed: load it again") from error
        return asyncio.wrap_future(future)

    def _step(self, answer: Generator[Token]) -> Token | None:
        with self._lock:
            self._stepping = answer
        try:
            return next(answer, None)
        finally:
            with self._lock:
                self._stepping = None


class AsyncChat:
    """A `Chat` for an event loop, see `Model.achat`."""

    def __init__(self, chat: Chat[Rule], thread: EngineThread) -> None:
        self._chat, self._thread = chat, thread

    def ask(
        self, content: str, *, rule: Rule | None = None
    ) -> AsyncGenerator[Token, None]:
        """See `Chat.ask`. The turn is in the conversation when this has ended."""
        return self._thread.stream(lambda: self._chat.ask(content, rule=rule))

    def again(self, *, rule: Rule | None = None) -> AsyncGenerator[Token, None]:
        """See `Chat.again`."""
        return self._thread.stream(lambda: self._chat.again(rule=rule))

    def undo(self) -> list[Message]:
        """See `Chat.undo`; not during an answer."""
        return self._chat.undo()

    @property
    def messages(self) -> Sequence[Message]:
        """See `Chat.messages`."""
        return self._chat.messages

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the last answer ended; None during an answer."""
        return self._chat.finish_reason

    @property
    def asked(self) -> Asked:
        """The treatment of the last prompt, see `Asked`."""
        return self._chat.asked
