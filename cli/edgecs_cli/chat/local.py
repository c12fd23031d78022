"""A chat with a model that is loaded here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edgecs.chat.archive import Owner, read, save
from edgecs.chat.conversation import Conversation
from edgecs.core.context import Context
from edgecs.core.draft import score_one
from edgecs.decoding.kmatrix import KMatrix
from edgecs.errors import ConfigError
from edgecs.runtime.builder import Runtime
from edgecs.sampling.chain import Rule
from edgecs.session.session import Session
from edgecs.text.chat_template import ChatTemplate
from edgecs_cli.chat.talk import Spec, Start, Talk
from edgecs_cli.console import Status
from edgecs_cli.loading.contention import Contention
from edgecs_cli.loading.describe import details, start_line
from edgecs_cli.loading.explain import origins_of
from edgecs_cli.loading.opening import opened
from edgecs_cli.options.recipe import Call, find_model, read_recipe
from edgecs_cli.options.shared import Interrupt
from edgecs_cli.origins import Origins
from edgecs_cli.short_lines import Report

_FIXED = 4  # tokens of every drafter's draft with `/spec on`
_LONG = 256  # tokens of a prompt that takes noticeable time


@contextmanager
def open_here(
    values: Mapping[str, Any], start: Start, call: Call, interrupt: Interrupt
) -> Iterator[LocalTalk]:
    """Loads the model of the options. Raises EdgecsError, UsageError."""
    recipe, answers = read_recipe(dict(values)), values["log_answers"]
    with opened(recipe, call, interrupt, answers) as runtime, ExitStack() as closing:
        yield LocalTalk(runtime, start, closing)


def check_model(model: str, *, offline: bool) -> None:
    """Finds a model or downloads it. Raises ModelError, FetchError."""
    from edgecs.engines.llama.model import check_file

    check_file(find_model(model, offline=offline))


class LocalTalk(Talk[Rule]):
    """A conversation with a loaded model. closing: frees sessions at the end."""

    def __init__(self, runtime: Runtime, start: Start, closing: ExitStack):
        self.runtime, self._closing = runtime, closing
        self.session: Session = runtime.session
        self._contention = Contention()
        vocabulary = runtime.loaded.model.vocabulary
        super().__init__(
            self.session,
            Conversation(ChatTemplate(vocabulary), vocabulary),
            start,
            runtime.recipe.sampling,
            "auto" if runtime.session.off_reason is None else "off",
        )

    @property
    def now(self) -> Runtime:
        """The runtime with the current session and settings."""
        recipe = replace(self.runtime.recipe, sampling=self.sampling)
        return replace(self.runtime, session=self.session, recipe=recipe)

    def start_line(self) -> str:
        """The model, its device, its context size, and whether speculation is on."""
        return start_line(self.now)

    def details(self) -> list[str]:
        """Sampling, drafters, schedule, exactness."""
        return details(self.now)

    @property
    def stats(self) -> Report:
        """Counts and times of the last answer."""
        return self.session.stats

    @property
    def chain(self) -> list[str]:
        """Names of the target and its drafters."""
        return self.session.chain

    def origins(self) -> Origins:
        """Where the tokens of the last answer come from."""
        return origins_of(self.session, self.now.tiers)

    def find(self, model: str) -> None:
        """Finds another model or downloads it. Raises ModelError, FetchError."""
        check_model(model, offline=self._start.offline)

    @contextmanager
    def during(self) -> Iterator[None]:
        """Shows the progress of prefill for a long prompt, and watches the CPU."""
        target, status = self.runtime.loaded.target, Status()

        def tell(done: int, total: int) -> None:
            if done == total:
                status.wipe()
            elif total >= _LONG:
                status.show(f"{done} of {total} prompt tokens processed")

        target.on_read = tell
        self._contention.answer_begins()
        try:
            yield
        finally:
            target.on_read = None
            status.wipe()  # it may have been stopped before the end

    def notes(self) -> Iterator[str]:
        """Whether other programs slowed the answer down."""
        if line := self._contention.line():
            yield line

    @cached_property
    def _owner(self) -> Owner:
        return self.runtime.loaded.owner()

    def owner(self) -> Owner:
        """The model that saved conversations belong to; reads samples of its file."""
        return self._owner

    def save(self, path: Path) -> None:
        """Saves the conversation and its KV cells. Raises ConfigError."""
        cells = self.runtime.loaded.target.snapshot()
        save(path, self.chat.conversation.state(), self.owner(), cells)

    def load(self, path: Path) -> str | None:
        """Loads a conversation, with its KV cells where they can be used.

        See `Talk.load`.
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

    def _prefix(self) -> list[int]:
        """The tokens that all conversations with this system message share."""
        if not any(m.role == "system" for m in self.chat.messages):
            return []
        prompts = [self._probe(text).tokens.tolist() for text in ("a", "b")]
        pairs = enumerate(zip(*prompts, strict=False))
        size = next((i for i, (one, other) in pairs if one != other), 0)
        return [*prompts[0][:size]]

    def _apply(self, spec: Spec) -> None:
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
        self.session = runtime.another_session(recipe)
        self._closing.callback(self.session.close)
        self.chat.session = self.session

    def _rule(self) -> Rule:
        return self.runtime.loaded.rule(self.seeded(), self.runtime.recipe.grammar)


def _always(drafters: int) -> KMatrix:
    """A fixed schedule in which all drafters draft for every reviewer."""
    count = drafters + 1  # including Max-Gram
    rows = range(count)
    return KMatrix(tuple(tuple(_FIXED * (c >= r) for c in rows) for r in rows))
