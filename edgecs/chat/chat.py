"""A chat: turns of a conversation in one session, with context overflow."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Generic, NamedTuple, Protocol, TypeVar

from edgecs.chat.conversation import Message, Turns
from edgecs.chat.overflow import Overflow, fit
from edgecs.errors import ConfigError, ContextFull
from edgecs.session.answer import FinishReason, Token
from edgecs.text.detokenizer import TextStream

Law = TypeVar("Law", contravariant=True)
"""How a session is told to choose tokens; of a `Session` a `Rule`."""


class Asked(NamedTuple):
    """The treatment of a prompt before its answer."""

    left_out: int  # messages newly left out of the context
    again: int  # tokens of earlier answers that the template changed


class Answering(Protocol[Law]):
    """What a chat needs of a `Session`; see there."""

    @property
    def n_ctx(self) -> int:
        """Tokens that the context holds."""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the last answer ended; set before its last token is yielded."""

    def piece(self, token: int) -> bytes:
        """The text of a token of the current answer."""

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int | None = None,
        rule: Law | None = None,
        logprobs: int | None = None,
    ) -> Generator[Token]:
        """The tokens of the answer to a prompt."""


class Chat(Generic[Law]):
    """Answers turn after turn, and reuses the KV cells of earlier turns.

    overflow: what to do if the conversation does not fit the context, see `overflow`.
    stop: texts that end an answer; they are not shown, but stay in the context, as the
    model generated them. rule: how tokens are chosen, None: as in the session.
    logprobs: see `Session.generate`. `finish_reason` and `asked` describe the last
    answer.

    The prompt of every turn has the ids of earlier answers and the new end of the
    template's text, so an answer is a function of the turns as ids.
    """

    def __init__(
        self,
        session: Answering[Law],
        conversation: Turns,
        *,
        overflow: Overflow = "stop",
        stop: Sequence[str] = (),
        max_tokens: int | None = None,
        rule: Law | None = None,
        logprobs: int | None = None,
    ) -> None:
        self.session, self.conversation = session, conversation
        self.overflow, self.stop, self.max_tokens = overflow, tuple(stop), max_tokens
        self.rule, self.logprobs = rule, logprobs
        self.finish_reason: FinishReason | None = None
        self.asked = Asked(0, 0)

    @property
    def messages(self) -> Sequence[Message]:
        """All messages, including those left out of the context."""
        return self.conversation.messages

    def ask(
        self, content: str, *, rule: Law | None = None, raw: bool = False
    ) -> Generator[Token]:
        """Streams the answer to a user's message.

        Both are in the conversation when it ends, also if it ends early; a message
        whose answer has no token is removed. rule: for this answer instead of the
        chat's own. raw: the tokens have their thoughts in the form of the model
        (`conversation.form`) instead of between <think> tags. Raises ConfigError and
        ContextFull at the first token; then the conversation is unchanged.
        """
        if not content.strip():
            raise ConfigError("the message is empty: give some text")
        self.conversation.add("user", content)
        yield from self._turn(rule, raw=raw)

    def again(self, *, rule: Law | None = None, raw: bool = False) -> Generator[Token]:
        """Another answer to the last message, which replaces the previous one.

        With the same rule it is the same answer, bit for bit. See `ask`. Raises
        ConfigError if there is no message.
        """
        gone = self.conversation.pop_turn()
        if not gone:
            raise ConfigError(
                "there is no message yet, so there is no answer to regenerate"
            )
        self.conversation.messages.append(gone[0])
        yield from self._turn(rule, gone, raw=raw)

    def undo(self) -> list[Message]:
        """Removes and returns the last message and its answer; empty: there is none."""
        return self.conversation.pop_turn()

    def _turn(
        self, rule: Law | None, before: Sequence[Message] = (), *, raw: bool
    ) -> Iterator[Token]:
        """The answer to the last message; if it has no token, restores `before`."""
        talk = self.conversation
        tags = talk.form.think_tags(open=False)
        ids: list[int] = []
        seen: list[str] = []
        self.finish_reason = None
        try:
            prompt, gone = fit(talk, self.session.n_ctx, self.overflow)
            self.asked = Asked(gone, prompt.again)
            tags = talk.form.think_tags(open=prompt.thinks)
            for token in self._tokens(prompt.tokens.tolist(), ids, rule):
                seen.append(tags.feed(token.text))
                if self.finish_reason:
                    seen[-1] += tags.flush()
                yield token if raw else token._replace(text=seen[-1])
        finally:
            if ids:
                seen.append(tags.flush())
                talk.add_answer("".join(seen), ids)
            else:
                talk.pop_turn()
                talk.messages.extend(before)

    def _tokens(
        self, prompt: list[int], ids: list[int], rule: Law | None
    ) -> Iterator[Token]:
        """One answer, over as many prompts as the context makes necessary.

        The text is assembled here, as a character or a stop string may begin before
        room was made and end after it.
        """
        session, text = self.session, TextStream(self.stop)
        shown = self.conversation.shown
        while self.finish_reason is None:
            left = None if self.max_tokens is None else self.max_tokens - len(ids)
            more: list[int] | None = None
            answer = session.generate(
                prompt,
                max_tokens=left,
                rule=rule or self.rule,
                logprobs=self.logprobs,
            )
            with closing(answer):
                for token in answer:
                    ids.append(token.id)
                    piece = text.push(shown.get(token.id) or session.piece(token.id))
                    reason = "stop" if text.stopped else session.finish_reason
                    if reason == "context":
                        more = self._make_room(ids)
                    if reason and more is None:
                        self.finish_reason = reason
                        piece += text.flush()
                    yield token._replace(text=piece)
                    if reason:
                        break
                else:  # the answer ended without another token
                    self.finish_reason = session.finish_reason
            if more:
                prompt = more

    def _make_room(self, ids: Sequence[int]) -> list[int] | None:
        """The prompt that continues an unfinished answer; None: there is no room."""
        room = self.session.n_ctx
        try:
            prompt, gone = fit(self.conversation, room, self.overflow, ids, full=True)
        except ContextFull:
            return None
        self.asked = self.asked._replace(left_out=self.asked.left_out + gone)
        return [*prompt.tokens.tolist()]
