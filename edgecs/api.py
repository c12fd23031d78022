"""A model that answers, in one call: what a program needs that does not care how.

    with load("smollm2-135m-instruct") as model:
        for token in model.generate("What is a llama?"):
            print(token.text, end="", flush=True)

This module alone looks at the user's folders: models, and what was measured on this
machine, are kept where the command line keeps them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

import platformdirs

from edgecs.chat import Chat
from edgecs.chat_template import ChatTemplate, Message
from edgecs.context import Tokens
from edgecs.conversation import Conversation
from edgecs.errors import ConfigError
from edgecs.exactness import Exact
from edgecs.load import Loaded, load_drafter
from edgecs.load import load as load_target
from edgecs.maxgram import MaxGram
from edgecs.options import LoadOptions
from edgecs.overflow import Overflow
from edgecs.profile import Profiles
from edgecs.sampling import Sampling
from edgecs.session import FinishReason, Session, Token
from edgecs.shipped import shipped_drafters
from edgecs.speculation import Speculation
from edgecs.stats import Stats
from edgecs.store import Store


def load(
    model: str | Path,
    options: LoadOptions | None = None,
    *,
    drafts: Sequence[str | Path] = (),
    speculate: bool = True,
    exact: Exact = "auto",
    folder: Path | None = None,
    offline: bool = False,
) -> Model:
    """Loads a model, fetched first if it is not here yet; a context manager.

    model: a name, a path to a GGUF, or user/repo[:quant]. drafts: smaller models and
    folders of ONNX drafters, the largest first; Max-Gram always comes last. speculate:
    False for plain decoding. exact: see docs/concepts.md. folder: where models and
    measurements are kept, None: where the command line keeps them. The first load of a
    model measures it, which takes seconds.

    Raises ConfigError, ModelError, FetchError, OutOfMemory.
    """
    folder = folder or Path(platformdirs.user_cache_dir("edgecs"))
    store = Store(folder / "models", offline=offline)
    with ExitStack() as undo:
        path = store.path(str(model))
        loaded = undo.enter_context(
            load_target(path, options or LoadOptions(), findings=folder / "llama.json")
        )
        if not speculate:
            return Model(loaded, loaded.session(), None, undo.pop_all())
        speculation = Speculation(
            loaded.target,
            exact=exact,
            key=loaded.key(),
            profiles=Profiles(folder / "profiles"),
        )
        speculation.prepare(loaded.seconds)
        named, fingerprints = [], {}
        for reference in drafts:
            drafter = undo.enter_context(
                load_drafter(_drafter(store, reference), loaded)
            )
            named.append(drafter.named)
            fingerprints[drafter.name] = drafter.fingerprint
        planner = speculation.planner(
            named,
            MaxGram(),
            fingerprints=fingerprints,
            ends=loaded.model.vocabulary.ends,
        )
        session = loaded.session(schedule=planner, limits=speculation.limits)
        return Model(loaded, session, speculation, undo.pop_all())


def _drafter(store: Store, reference: str | Path) -> Path:
    path = Path(reference)
    if path.is_dir():
        return path
    return shipped_drafters().get(str(reference)) or store.path(str(reference))


class Model:
    """A loaded model. One answer at a time: a new one ends the one before it.

    loaded, session, speculation: the parts behind it, for those who want more.
    """

    def __init__(
        self,
        loaded: Loaded,
        session: Session,
        speculation: Speculation | None,
        closing: ExitStack,
    ) -> None:
        self.loaded, self.session, self.speculation = loaded, session, speculation
        self._closing = closing
        closing.push(lambda *exc: session.close())

    @property
    def stats(self) -> Stats:
        """Of the last answer: tokens, rounds, acceptance, times."""
        return self.session.stats

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the last answer ended; None while it is under way."""
        return self.session.finish_reason

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        raw: bool = False,
    ) -> Iterator[Token]:
        """The answer to a prompt, token by token.

        prompt: a user's message, or all messages of a conversation. sampling: greedy if
        it is not given; one seed gives one answer. raw: feed the text as it is, without
        the model's chat template. Raises ConfigError, ContextFull.
        """
        rule = self.loaded.rule(sampling or Sampling())
        return self.session.generate(
            self._encode(prompt, raw), max_tokens=max_tokens, stop=stop, rule=rule
        )

    async def agenerate(
        self,
        prompt: str | Sequence[Message],
        *,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        raw: bool = False,
    ) -> AsyncGenerator[Token, None]:
        """`generate` beside an event loop: the engine computes in a thread.

        Closing it, or cancelling the task that reads it, ends it within a round.
        """
        stream = self.generate(
            prompt, sampling=sampling, max_tokens=max_tokens, stop=stop, raw=raw
        )
        loop, cancel = asyncio.get_running_loop(), self.loaded.cancel
        with ThreadPoolExecutor(1, "edgecs") as thread:
            try:
                while token := await loop.run_in_executor(thread, next, stream, None):
                    yield token
            finally:
                cancel.set()  # for a round under way
                thread.submit(self.session.stop).result()
                cancel.clear()

    def chat(
        self,
        system: str | None = None,
        *,
        overflow: Overflow = "stop",
        stop: Sequence[str] = (),
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
    ) -> Chat:
        """A conversation whose turns compute only what is new, see `Chat`."""
        vocabulary = self.loaded.model.vocabulary
        conversation = Conversation(self._template, vocabulary)
        conversation.set_system(system)
        self.session.rule = self.loaded.rule(sampling or Sampling())
        return Chat(
            self.session,
            conversation,
            overflow=overflow,
            stop=stop,
            max_tokens=max_tokens,
        )

    def close(self) -> None:
        """Keeps what was learnt about drafts, and frees everything."""
        self.session.close()
        if self.speculation:
            self.speculation.save()
        self._closing.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _encode(self, prompt: str | Sequence[Message], raw: bool) -> Tokens:
        vocabulary = self.loaded.model.vocabulary
        if raw:
            if not isinstance(prompt, str):
                raise ConfigError(
                    "raw takes a text, not messages: they need a template"
                )
            return vocabulary.encode(prompt)
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        return self._template.encode(prompt)

    @cached_property
    def _template(self) -> ChatTemplate:
        template = ChatTemplate(self.loaded.model.vocabulary)
        self._closing.callback(template.close)
        return template
