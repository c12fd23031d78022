"""A loaded model for the server: slots, template, vocabulary, limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgecs.chat.archive import Owner
from edgecs.chat.conversation import Conversation, Message, Prompt
from edgecs.core.context import Tokens
from edgecs.core.fim_tokens import FimTokens
from edgecs.errors import ConfigError, ContextFull
from edgecs.grammar.lazy import LazyGrammar
from edgecs.grammar.mask import Grammar
from edgecs.runtime.builder import Runtime, session_of
from edgecs.runtime.loader import Loaded
from edgecs.runtime.slot_drafters import SlotDrafters
from edgecs.sampling.chain import Rule
from edgecs.sampling.settings import Sampling
from edgecs.server.batching.checks import Checks
from edgecs.server.batching.job import Event, Job, Ticket
from edgecs.server.batching.scheduler import Scheduler
from edgecs.server.models.served import Served
from edgecs.server.prefixes.store import PREFIX_BYTES, open_store
from edgecs.text.chat_template import ChatTemplate
from edgecs.text.detokenizer import Tokenizer
from edgecs.toolcalls.family import Family
from edgecs.toolcalls.form import AnswerForm


class Engine(Served):
    """Answers jobs with the target of a runtime.

    There is one slot for each sequence of the target. drafting: which drafters that are
    models are in which slots; empty: there are none, or one slot. prefix_cache: folder
    for the cells of conversations that lose their slots, of `prefix_bytes` at most.
    """

    loaded: Loaded

    def __init__(
        self,
        runtime: Runtime,
        name: str,
        *,
        waiting: int,
        prefix_cache: Path | None = None,
        prefix_bytes: int = PREFIX_BYTES,
    ) -> None:
        self.runtime, self.name = runtime, name
        self.loaded, self.created = runtime.loaded, int(time.time())
        self.checks = Checks()
        target = runtime.loaded.target
        self.n_ctx, self.slots = target.n_ctx, target.sequences
        speculation = runtime.speculation
        with ExitStack() as undo:
            undo.callback(self.checks.close)
            drafters = runtime.drafters if speculation else ()
            placed = SlotDrafters(drafters, self.slots, undo)
            self.drafting = placed.about
            sessions = [runtime.session]
            for i in range(1, self.slots):
                recipe, mine = runtime.recipe, placed.of(i)
                if len(mine) < len(drafters):  # a K matrix names all
                    recipe = replace(recipe, matrix=None)
                session = session_of(
                    recipe,
                    self.loaded,
                    mine,
                    speculation,
                    sequence=i,
                    memory=runtime.memory,
                )
                sessions.append(undo.enter_context(session))
            self._template: ChatTemplate | None = None
            if self.loaded.model.vocabulary.chat_template:
                self._template = ChatTemplate(self.loaded.model.vocabulary)
                undo.callback(self._template.close)
            store = None
            if prefix_cache is not None:
                store = open_store(self.loaded, prefix_cache, prefix_bytes)
            if store is not None:
                undo.callback(store.close)
            self.scheduler = Scheduler(
                sessions,
                speculation.costs if speculation else None,
                reads=runtime.loaded.options.n_batch,
                waiting=waiting,
                strict=runtime.recipe.exact == "strict",
                store=store,
            )
            self._closing = undo.pop_all()

    @cached_property
    def owner(self) -> Owner:
        """The model that saved conversations belong to; reads samples of its file."""
        return self.loaded.owner()

    @property
    def vocab_size(self) -> int:
        """Ids of tokens go from 0 to one less."""
        return self.loaded.target.vocab_size

    @cached_property
    def form(self) -> AnswerForm:
        """How the model writes thoughts and tool calls."""
        return AnswerForm.of(self.chat_template or "")

    @property
    def family(self) -> Family:
        """How the model writes tool calls."""
        return self.form.family

    @property
    def vocabulary(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.loaded.model.vocabulary

    @property
    def fim(self) -> FimTokens | None:
        """The tokens for filling in; None: the model cannot."""
        return self.loaded.model.vocabulary.fim

    def encode_plain(self, text: str) -> Tokens:
        """The ids of a text, none of which is a control token."""
        vocabulary = self.loaded.model.vocabulary
        return vocabulary.encode(text, document=False, special=False)

    @property
    def can_think(self) -> bool:
        """Whether the model's template knows of thoughts."""
        return self.form.thinks

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The prompt text of a conversation. Raises ConfigError."""
        return self._with_template().render(messages, tools=tools)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        beginning: str = "",
        *,
        thinking: bool | None = None,
        effort: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Tokens:
        """The prompt ids of a conversation. Raises ConfigError.

        See `ChatTemplate.encode`.
        """
        return self._with_template().encode(
            messages, beginning, thinking=thinking, effort=effort, tools=tools
        )

    def encode_turns(
        self, messages: Sequence[Message], partial: Sequence[int] = ()
    ) -> Prompt:
        """The prompt ids of a conversation whose answers may have ids.

        partial: ids of an unfinished answer. Raises ConfigError.
        """
        for ids in (partial, *(one.ids or () for one in messages)):
            self.check_ids(ids)
        talk = Conversation(self._with_template(), self.loaded.model.vocabulary)
        talk.messages = [*messages]
        return talk.prompt(partial)

    def _with_template(self) -> ChatTemplate:
        if self._template is None:
            raise ConfigError(
                "this model has no chat template: use /v1/completions, which needs none"
            )
        return self._template

    @property
    def fingerprint(self) -> str:
        """OpenAI's system_fingerprint: the version and the kernels."""
        return f"edgecs-{version('edgecs')}-{self.loaded.options.kernels}"

    def rule(self, sampling: Sampling, grammar: Grammar | LazyGrammar | None) -> Rule:
        """How tokens are chosen. Raises ConfigError."""
        return self.loaded.rule(sampling, grammar)

    def check_room(self, prompt: Tokens) -> None:
        """Raises ContextFull for a prompt that leaves no room for an answer."""
        if prompt.size > self.n_ctx:
            raise ContextFull(
                f"the prompt has {prompt.size} tokens but the context holds "
                f"{self.n_ctx}: shorten it, or start the server with a larger context "
                "(-c)"
            )

    def ask(self, job: Job) -> SubmittedJob:
        """Submit a job. Raises Busy."""
        return SubmittedJob(self.scheduler, job)

    def cancel(self) -> None:
        """End all answers within a round."""
        self.scheduler.cancel()

    def close(self, patience: float = 0.0) -> None:
        """Wait up to `patience` seconds for current answers, and free the slots."""
        self.scheduler.close(patience)
        self._closing.close()


class SubmittedJob:
    """A submitted job whose events are read in an event loop."""

    def __init__(self, scheduler: Scheduler, job: Job) -> None:
        loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

        def notify(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self.job = job
        self.ticket: Ticket = scheduler.submit(job, notify)

    async def events(self) -> AsyncGenerator[Event, None]:
        """All events; the last one is not a list. Closing it cancels the job."""
        try:
            while True:
                event = await self._events.get()
                yield event
                if not isinstance(event, list):
                    return
        finally:
            self.ticket.cancel()
