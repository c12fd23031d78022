"""A chat in the terminal: a model, a conversation and settings."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from edgecs.calibrate.profile import Key
from edgecs.chat.archive import Owner, read, save
from edgecs.chat.chat import Chat
from edgecs.chat.conversation import Conversation, Message
from edgecs.chat.overflow import Overflow
from edgecs.core.context import Context
from edgecs.core.draft import score_one
from edgecs.decoding.kmatrix import KMatrix
from edgecs.errors import ConfigError
from edgecs.runtime.builder import Runtime
from edgecs.session.answer import Token
from edgecs.session.session import Session
from edgecs.text.chat_template import ChatTemplate
from edgecs.text.thoughts import OPENS
from edgecs_cli.options.recipe import find_model

Spec = Literal["auto", "on", "off"]
_FIXED = 4  # tokens of every drafter's draft with `/spec on`


@dataclass(frozen=True)
class Start:
    """How a conversation begins."""

    system: str | None
    overflow: Overflow
    stop: tuple[str, ...]
    max_tokens: int  # of an answer; -1: until the model stops
    offline: bool


class Talk:
    """A conversation with a loaded model.

    `sampling` and `spec` may be changed between answers, each by its method.
    """

    def __init__(self, runtime: Runtime, start: Start, closing: ExitStack):
        self.runtime, self._start, self._closing = runtime, start, closing
        self.sampling = runtime.recipe.sampling
        self.spec: Spec = "auto" if runtime.session.off_reason is None else "off"
        vocabulary = runtime.loaded.model.vocabulary
        conversation = Conversation(ChatTemplate(vocabulary), vocabulary)
        conversation.set_system(start.system)
        self.chat = Chat(
            runtime.session,
            conversation,
            overflow=start.overflow,
            stop=start.stop,
            max_tokens=None if start.max_tokens < 0 else start.max_tokens,
        )
        self._times = 0  # that the last answer was regenerated
        self._wanted: Spec | None = None  # as set by `set_spec`

    @cached_property
    def _key(self) -> Key:
        """The key that KV cells depend on; reads samples of the model's file."""
        return self.runtime.loaded.key()

    @property
    def session(self) -> Session:
        """The current session."""
        return self.chat.session

    @property
    def now(self) -> Runtime:
        """The runtime with the current session and settings."""
        recipe = replace(self.runtime.recipe, sampling=self.sampling)
        return replace(self.runtime, session=self.session, recipe=recipe)

    def ask(self, text: str) -> Generator[Token]:
        """The answer to a message, see `Chat.ask`."""
        self._times = 0
        return self.chat.ask(text, rule=self._rule())

    def again(self) -> Generator[Token]:
        """Another answer to the last message, sampled with another seed."""
        self._times += 1
        return self.chat.again(rule=self._rule())

    def set_sampling(self, name: str, value: float) -> None:
        """Changes a setting of the sampler chain. Raises ConfigError."""
        changed: dict[str, Any] = {name: value}
        self.sampling = replace(self.sampling, **changed)

    def set_spec(self, spec: Spec) -> None:
        """auto: the planner decides; on: all drafters always draft; off: none.

        Raises ConfigError where the model was opened without speculation.
        """
        runtime = self.runtime
        if spec != "off" and runtime.speculation is None:
            raise ConfigError(
                "speculation was switched off at the start (--no-spec or --draft-max "
                "0): start without these to use it"
            )
        recipe = replace(runtime.recipe, speculate=spec != "off")
        if spec == "on" and recipe.matrix is None:
            names = tuple(drafter.name for drafter in runtime.drafters)
            matrix = _always(len(names))
            recipe = replace(recipe, drafts=names, matrix=matrix, longest=None)
        self.session.close()
        session = runtime.another_session(recipe)
        self._closing.callback(session.close)
        self.chat.session, self.spec = session, spec
        self._wanted = spec

    def find(self, model: str) -> None:
        """Finds another model or downloads it. Raises ModelError, FetchError."""
        from edgecs.engines.llama.model import check_file

        check_file(find_model(model, offline=self._start.offline))

    def take_over(self, other: Talk) -> None:
        """Takes the text and the settings of a chat with another model."""
        mine, theirs = self.chat, other.chat
        mine.conversation.messages = [
            Message(m.role, m.content) for m in theirs.messages
        ]
        mine.overflow, mine.stop = theirs.overflow, theirs.stop
        mine.max_tokens, self.sampling = theirs.max_tokens, other.sampling
        if other._wanted:
            self.set_spec(other._wanted)

    def tokens(self) -> int:
        """Number of tokens of the conversation so far."""
        talk = self.chat.conversation
        return talk.prompt().tokens.size if talk.messages else 0

    def owner(self) -> Owner:
        """The model that saved conversations belong to."""
        key = self._key
        tokens = self.session.target.vocab_size
        return Owner(key.model, key.fingerprint, key.bits, tokens)

    def save(self, path: Path) -> None:
        """Saves the conversation and its KV cells. Raises ConfigError."""
        cells = self.runtime.loaded.target.snapshot()
        save(path, self.chat.conversation.state(), self.owner(), cells)

    def load(self, path: Path) -> str | None:
        """Loads a conversation; returns why it is computed again, None if it is not.

        Raises ConfigError, ModelError; then this conversation is unchanged.
        """
        found = read(path, self.owner())
        target, reason = self.runtime.loaded.target, found.reason
        if found.cells and not target.restore(found.cells):
            reason = "llama.cpp rejects its KV cells"
        self.chat.conversation.messages = found.messages
        return reason

    def warm(self, path: Path, say: Callable[[str], None]) -> None:
        """Loads the system message's KV cells from a file, or computes and saves them.

        Either way it is computed in calls of its own, so an answer does not depend on
        which way it was. Raises ConfigError.
        """
        prefix = self._prefix()
        target = self.runtime.loaded.target
        if path.exists():
            cells = read(path, self.owner()).cells
            if cells and cells.tokens == prefix and target.restore(cells):
                say(f"loaded {len(prefix)} tokens of the system message from {path}")
                return
        if not prefix:
            return
        score_one(target, Context(prefix))
        cells = target.snapshot()
        save(path, [], self.owner(), cells)
        if cells:
            target.restore(cells)  # continue from the same cells as after loading
        say(f"saved {len(prefix)} tokens of the system message to {path}")

    @cached_property
    def thinks_at_once(self) -> bool:
        """Whether the template opens a thinking block before the answer."""
        spelling = self.session.tokenizer.spelling
        last = self._probe("a")[-8:]
        return "".join(map(spelling, last)).rstrip().endswith(OPENS)

    def _probe(self, text: str) -> list[int]:
        """The prompt for a message."""
        talk = self.chat.conversation
        talk.add("user", text)
        try:
            return [*talk.prompt().tokens.tolist()]
        finally:
            talk.pop_turn()

    def _prefix(self) -> list[int]:
        """The tokens that all conversations with this system message share."""
        if not any(m.role == "system" for m in self.chat.messages):
            return []
        prompts = [self._probe(text) for text in ("a", "b")]
        pairs = enumerate(zip(*prompts, strict=False))
        size = next((i for i, (one, other) in pairs if one != other), 0)
        return prompts[0][:size]

    def _rule(self) -> Any:
        sampling = self.sampling
        if not sampling.is_greedy:
            seed = (sampling.seed + self._times) % (1 << 64)
            sampling = replace(sampling, seed=seed)
        return self.runtime.loaded.rule(sampling, self.runtime.recipe.grammar)


def _always(drafters: int) -> KMatrix:
    """A fixed schedule in which all drafters draft for every reviewer."""
    count = drafters + 1  # including Max-Gram
    rows = range(count)
    return KMatrix(tuple(tuple(_FIXED * (c >= r) for c in rows) for r in rows))
