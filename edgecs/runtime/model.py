"""High-level API: load a model with one call.

    with load("smollm2-135m-instruct") as model:
        print(model.ask("What is a llama?"))

Models and measurements are stored in the command line's folders, see `Folders`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing, closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from edgecs.chat.asynchronous import AsyncChat, EngineThread
from edgecs.chat.chat import Chat
from edgecs.chat.conversation import ROLES, Conversation
from edgecs.chat.overflow import Overflow
from edgecs.core.context import Tokens
from edgecs.decoding.tiers import Exact
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ConfigError
from edgecs.hub.download import Progress
from edgecs.runtime.builder import Runtime, build, find_files
from edgecs.runtime.folders import Folders
from edgecs.runtime.recipe import Recipe
from edgecs.sampling.chain import Rule
from edgecs.sampling.settings import Sampling, Settings
from edgecs.session.answer import FinishReason, Token
from edgecs.session.stats import Stats
from edgecs.text.chat_template import ChatTemplate, Message
from edgecs.toolcalls.form import AnswerForm

if TYPE_CHECKING:
    from edgecs.grammar.mask import Grammar

Schema = str | bytes | bool | Mapping[str, object]
"""A JSON schema: its text, or the parsed value."""


def load(
    model: str | Path | Recipe,
    options: LoadOptions | None = None,
    *,
    drafts: Sequence[str | Path] | None = None,
    speculate: bool = True,
    exact: Exact = "auto",
    folder: Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Model:
    """Load a model, and download it first if it is missing; a context manager.

    model: a name, a path to a GGUF, or user/repo[:quant]; or a `Recipe`, which replaces
    `options`, `drafts`, `speculate` and `exact`. drafts: smaller models and folders of
    ONNX drafters, the largest first; None: the bundled drafter of the model, if it pays
    on this machine; Max-Gram always comes last. speculate: False for plain decoding.
    exact: see docs/concepts.md. folder: location of models and measurements, None: that
    of the command line. progress: called during downloads with the name of the file,
    the bytes received and the total (0: not known). The first load of a model measures
    it, which takes seconds.

    Raises ConfigError, ModelError, FetchError, OutOfMemory.
    """
    if isinstance(model, Recipe):
        recipe = model
    else:
        recipe = Recipe(
            str(model),
            options or LoadOptions(),
            drafts=None if drafts is None else tuple(map(str, drafts)),
            speculate=speculate,
            exact=exact,
        )
    folders = Folders(folder, offline) if folder else Folders(offline=offline)
    files = find_files(recipe, folders, progress or _silent)
    with ExitStack() as undo:
        runtime = undo.enter_context(build(recipe, files, folders))
        return Model(runtime, undo.pop_all())


def _silent(what: str, done: int, total: int) -> None:
    """Ignore progress."""


class _Wishes(Settings, total=False):
    max_tokens: int | None
    stop: Sequence[str]
    sampling: Sampling | None
    grammar: str | Grammar | None
    schema: Schema | None
    logprobs: int | None


class Answering(_Wishes, total=False):
    """The keywords of `Model.generate`, including the settings of a `Sampling`."""

    raw: bool


class Chatting(_Wishes, total=False):
    """The keywords of `Model.chat`, including the settings of a `Sampling`."""

    messages: Sequence[Message]
    overflow: Overflow


class Model:
    """A loaded model. It gives one answer at a time: a new one ends the previous one.

    All methods but `stop` are for one thread; `agenerate` and `achat` are for event
    loops, and may be used by many tasks, whose answers end each other.

    runtime: its parts, for direct access.
    """

    def __init__(self, runtime: Runtime, closing: ExitStack) -> None:
        self.runtime = runtime
        self.loaded, self.session = runtime.loaded, runtime.session
        self._closing = closing
        self._thread = EngineThread(self.session)

    @property
    def stats(self) -> Stats:
        """Statistics of the last answer: tokens, rounds, acceptance, times."""
        return self.session.stats

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the last answer ended; None while it is running."""
        return self.session.finish_reason

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        raw: bool = False,
        sampling: Sampling | None = None,
        grammar: str | Grammar | None = None,
        schema: Schema | None = None,
        logprobs: int | None = None,
        **settings: Unpack[Settings],
    ) -> Generator[Token]:
        """The answer to a prompt, token by token.

        prompt: a user's message, or all messages of a conversation. stop: texts that
        end the answer, and are not part of it. raw: feed the text as it is, without the
        model's chat template. settings: `temperature=0.8, top_p=0.95, seed=7`, names as
        in `Sampling`; they change `sampling`, which is greedy by default; answers are
        reproducible with a seed. grammar, schema: see `rule`. logprobs: return the
        log-probability of every token, and of this many of the most likely tokens, from
        the model's unmodified logits. Thoughts are between <think> tags in the text,
        whatever the form of the model, except with `raw`. Raises ConfigError,
        ContextFull.
        """
        rule = self.rule(sampling, grammar=grammar, schema=schema, **settings)
        ids = self._encode(prompt, raw)
        tokens = self.session.generate(
            ids,
            max_tokens=max_tokens,
            stop=stop,
            rule=rule,
            logprobs=logprobs,
            shown=None if raw else self._form.shown(self.loaded.model.vocabulary),
        )
        return tokens if raw else self._tagged(tokens, ids)

    def ask(self, prompt: str | Sequence[Message], **how: Unpack[Answering]) -> str:
        """The whole answer as a text, see `generate`."""
        return "".join(token.text for token in self.generate(prompt, **how))

    async def agenerate(
        self, prompt: str | Sequence[Message], **how: Unpack[Answering]
    ) -> AsyncGenerator[Token, None]:
        """`generate` for event loops: the engine computes in a thread.

        Closing it, or cancelling the task that reads it, ends the answer within a
        round.
        """
        tokens = self._thread.stream(lambda: self.generate(prompt, **how))
        async with aclosing(tokens):
            async for token in tokens:
                yield token

    def chat(
        self,
        system: str | None = None,
        *,
        messages: Sequence[Message] = (),
        overflow: Overflow = "stop",
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
        grammar: str | Grammar | None = None,
        schema: Schema | None = None,
        logprobs: int | None = None,
        **settings: Unpack[Settings],
    ) -> Chat[Rule]:
        """A conversation whose turns compute only new tokens, see `Chat`.

        messages: the conversation so far, up to an answer. The other arguments are
        those of `generate`, for all answers.
        """
        conversation = Conversation(self._template, self.loaded.model.vocabulary)
        for role, content in _said(messages, system):
            conversation.add(role, content)
        return Chat(
            self.session,
            conversation,
            overflow=overflow,
            stop=stop,
            max_tokens=max_tokens,
            rule=self.rule(sampling, grammar=grammar, schema=schema, **settings),
            logprobs=logprobs,
        )

    def achat(self, system: str | None = None, **how: Unpack[Chatting]) -> AsyncChat:
        """`chat` for event loops."""
        return AsyncChat(self.chat(system, **how), self._thread)

    def rule(
        self,
        sampling: Sampling | None = None,
        *,
        grammar: str | Grammar | None = None,
        schema: Schema | None = None,
        **settings: Unpack[Settings],
    ) -> Rule:
        """How tokens are chosen; each turn of a chat can have its own rule.

        grammar: in llama.cpp's notation (GBNF). schema: a JSON schema. At most one of
        the two may be given. Raises ConfigError.
        """
        recipe = self.runtime.recipe
        made = recipe.grammar
        if grammar is not None or schema is not None:
            made = _grammar(grammar, schema)
        chosen = replace(sampling or recipe.sampling, **settings)
        return self.loaded.rule(chosen, made)

    def stop(self) -> None:
        """End the current answer within a round; may be called from any thread.

        The text so far is kept, and `finish_reason` becomes "cancelled".
        """
        self.session.interrupt()

    def close(self) -> None:
        """Save the profile and free everything."""
        self.session.interrupt()
        self._thread.close()
        self.session.close()
        self._closing.close()  # saves the profile

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _encode(self, prompt: str | Sequence[Message], raw: bool) -> Tokens:
        vocabulary = self.loaded.model.vocabulary
        if raw:
            if not isinstance(prompt, str):
                raise ConfigError(
                    "raw needs a text, not messages: they need a chat template"
                )
            return vocabulary.encode(prompt)
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        return self._template.encode(prompt)

    @cached_property
    def _form(self) -> AnswerForm:
        return AnswerForm.of(self.loaded.model.vocabulary.chat_template or "")

    def _tagged(self, tokens: Generator[Token], prompt: Tokens) -> Generator[Token]:
        """The tokens of an answer, with thoughts between <think> tags."""
        opened = self._form.opened_by(prompt, self.loaded.model.vocabulary)
        tags = self._form.think_tags(open=opened)
        with closing(tokens):
            yield from tags.over(tokens, lambda token: bool(self.finish_reason))

    @cached_property
    def _template(self) -> ChatTemplate:
        template = ChatTemplate(self.loaded.model.vocabulary)
        self._closing.callback(template.close)
        return template


def _grammar(grammar: str | Grammar | None, schema: Schema | None) -> Grammar:
    from edgecs.grammar.mask import Grammar

    if grammar is not None and schema is not None:
        raise ConfigError("grammar and schema cannot be combined: give one of them")
    if schema is not None:
        return Grammar.json_schema(schema)
    assert grammar is not None
    return Grammar.gbnf(grammar) if isinstance(grammar, str) else grammar


def _said(messages: Sequence[Message], system: str | None) -> Iterator[tuple[str, str]]:
    """Roles and texts of a conversation that ends with an answer; or ConfigError."""
    told = [{"role": "system", "content": system}] if system else []
    last = "assistant"  # so that a user's message may come first
    for at, message in enumerate([*told, *messages]):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise ConfigError(
                f"message {at + 1} must have a role ({', '.join(ROLES)}) and a text as "
                f"content, got {message!r:.80}"
            )
        if role == last or (role == "system" and at):
            raise ConfigError(
                f"message {at + 1} is the {role}'s: a conversation is a system "
                "message, if any, and then user and assistant in turn"
            )
        yield role, content
        last = "assistant" if role == "system" else role
    if last == "user":
        raise ConfigError("the last message is the user's: give that one to ask()")
