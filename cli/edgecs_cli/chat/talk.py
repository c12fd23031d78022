"""What the screen and the commands of a chat need of a conversation with a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from edgecs.chat.archive import Owner, read, save
from edgecs.chat.chat import Answering, Chat
from edgecs.chat.conversation import Message, Prompt, Turns
from edgecs.chat.overflow import Overflow
from edgecs.errors import ConfigError
from edgecs.sampling.settings import Sampling
from edgecs.session.answer import Token
from edgecs_cli.origins import Origins
from edgecs_cli.short_lines import Report

Spec = Literal["auto", "on", "off"]
Law = TypeVar("Law")


@dataclass(frozen=True)
class Start:
    """How a conversation begins."""

    system: str | None
    overflow: Overflow
    stop: tuple[str, ...]
    max_tokens: int  # of an answer; -1: until the model stops
    offline: bool


class Talk(ABC, Generic[Law]):
    """A conversation with a model, which is loaded here or by a server.

    `sampling` and `spec` may be changed between answers, each by its method.
    """

    def __init__(
        self,
        session: Answering[Law],
        turns: Turns,
        start: Start,
        sampling: Sampling,
        spec: Spec,
    ) -> None:
        self.sampling, self.spec = sampling, spec
        turns.set_system(start.system)
        self.chat = Chat[Law](
            session,
            turns,
            overflow=start.overflow,
            stop=start.stop,
            max_tokens=None if start.max_tokens < 0 else start.max_tokens,
        )
        self._start = start
        self._times = 0  # that the last answer was regenerated
        self._wanted: Spec | None = None  # as set by `set_spec`

    def ask(self, text: str) -> Generator[Token]:
        """The answer to a message as the model writes it, see `Chat.ask`."""
        self._times = 0
        return self.chat.ask(text, rule=self._rule(), raw=True)

    def again(self) -> Generator[Token]:
        """Another answer to the last message, sampled with another seed."""
        self._times += 1
        return self.chat.again(rule=self._rule(), raw=True)

    def set_sampling(self, name: str, value: float) -> None:
        """Changes a setting of the sampler chain. Raises ConfigError."""
        changed: dict[str, Any] = {name: value}
        self.sampling = replace(self.sampling, **changed)

    def set_spec(self, spec: Spec) -> None:
        """auto: drafts where they pay; on: always; off: never. Raises ConfigError."""
        self._apply(spec)
        self.spec = self._wanted = spec

    def take_over(self, other: Talk[Any]) -> None:
        """Takes the text and the settings of a chat with another model."""
        mine, theirs = self.chat, other.chat
        mine.conversation.messages = [
            Message(m.role, m.content) for m in theirs.messages
        ]
        mine.overflow, mine.stop = theirs.overflow, theirs.stop
        mine.max_tokens, self.sampling = theirs.max_tokens, other.sampling
        if other._wanted:
            with suppress(ConfigError):  # not every model has the choice
                self.set_spec(other._wanted)

    def tokens(self) -> int:
        """Number of tokens of the conversation so far."""
        talk = self.chat.conversation
        return talk.prompt().tokens.size if talk.messages else 0

    def save(self, path: Path) -> None:
        """Saves the conversation. Raises ConfigError."""
        save(path, self.chat.conversation.state(), self.owner(), None)

    def load(self, path: Path) -> str | None:
        """Loads a conversation; returns why it is computed again, None if it is not.

        Raises ConfigError, ModelError; then this conversation is unchanged.
        """
        found = read(path, self.owner())
        self.chat.conversation.messages = found.messages
        return found.reason

    def warm(self, path: Path, say: Callable[[str], None]) -> None:
        """Uses a file with the KV cells of the system message. Raises ConfigError."""
        raise ConfigError("this model computes elsewhere")

    def during(self) -> AbstractContextManager[None]:
        """A context around an answer."""
        return nullcontext()

    def notes(self) -> Iterator[str]:
        """What to tell after an answer."""
        yield from ()

    def seeded(self) -> Sampling:
        """The settings of the next answer."""
        sampling = self.sampling
        if sampling.is_greedy:
            return sampling
        return replace(sampling, seed=(sampling.seed + self._times) % (1 << 64))

    @abstractmethod
    def start_line(self) -> str:
        """The model and where it computes, in a line."""

    @abstractmethod
    def details(self) -> list[str]:
        """Lines that say more than that."""

    @property
    @abstractmethod
    def stats(self) -> Report:
        """Counts and times of the last answer."""

    @property
    @abstractmethod
    def chain(self) -> list[str]:
        """Names of the target and its drafters, Max-Gram last."""

    @abstractmethod
    def origins(self) -> Origins:
        """Where the tokens of the last answer come from."""

    @abstractmethod
    def owner(self) -> Owner:
        """The model that saved conversations belong to."""

    @cached_property
    def thinks_at_once(self) -> bool:
        """Whether the template opens a thinking block before the answer."""
        return self._probe("a").thinks

    def _probe(self, text: str) -> Prompt:
        """The prompt for a message."""
        talk = self.chat.conversation
        talk.add("user", text)
        try:
            return talk.prompt()
        finally:
            talk.pop_turn()

    @abstractmethod
    def find(self, model: str) -> None:
        """Checks that another model can be had. Raises EdgecsError."""

    @abstractmethod
    def _rule(self) -> Law:
        """How the tokens of the next answer are chosen."""

    @abstractmethod
    def _apply(self, spec: Spec) -> None:
        """See `set_spec`."""
