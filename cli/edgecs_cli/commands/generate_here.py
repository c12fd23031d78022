"""`edgecs generate` with a model that it loads itself."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from edgecs.core.context import Tokens
from edgecs.runtime.builder import Runtime
from edgecs.runtime.loader import Loaded
from edgecs.runtime.recipe import Recipe
from edgecs.session.answer import Token
from edgecs.session.session import Session
from edgecs.session.trace import TraceFile, follow, header
from edgecs.text.chat_template import ChatTemplate
from edgecs.text.think_tags import ThinkTags
from edgecs.toolcalls.form import AnswerForm
from edgecs_cli.commands.compare import check, compare
from edgecs_cli.console import echo, has_colours
from edgecs_cli.loading.contention import Contention
from edgecs_cli.loading.describe import introduce
from edgecs_cli.loading.explain import legend
from edgecs_cli.loading.opening import opened
from edgecs_cli.options.recipe import Call
from edgecs_cli.options.shared import Interrupt
from edgecs_cli.origins import Paint, painter, plain
from edgecs_cli.short_lines import answer_details, answer_line

if TYPE_CHECKING:
    from edgecs_cli.commands.generate import Wishes


def answer_here(recipe: Recipe, call: Call, wishes: Wishes, text: str) -> int:
    """Answers a prompt; returns the exit code. text: the prompt."""
    if wishes.compare:
        check(recipe)
    interrupt = Interrupt()
    with (
        _open_trace(wishes.trace) as trace,
        opened(recipe, call, interrupt, wishes.log_answers) as runtime,
        interrupt,
    ):
        introduce(runtime, quiet=call.quiet, verbose=call.verbose)
        session = runtime.session
        prompt, form = _encode(runtime.loaded, text, wishes)
        if trace:
            _follow(runtime, trace, prompt.size)
        contention = Contention()
        answer = _stream(session, prompt, form, wishes, _paint(session, wishes))
        if wishes.as_json:
            echo(json.dumps(_report(runtime, answer)))
        reason = session.finish_reason
        if wishes.explain and not call.quiet:
            _explain(runtime)
        call.say(_summary(runtime, drawn=wishes.seed < 0))
        for line in answer_details(session.stats) if call.verbose else ():
            call.say(line)
        if busy := contention.line():
            call.say(busy)
        if wishes.compare:
            for line in compare(runtime, prompt, wishes.stop, call.say):
                echo(line, err=True)
    return 130 if reason == "cancelled" else 0


def _summary(runtime: Runtime, *, drawn: bool) -> str:
    """The answer in a line, with the seed if it was random and used."""
    session, sampling = runtime.session, runtime.recipe.sampling
    seed = sampling.seed if drawn and not sampling.is_greedy else None
    return answer_line(session.stats, session.finish_reason, seed=seed)


class _Form(NamedTuple):
    """How thoughts are shown. shown: see `Session.generate`."""

    tags: ThinkTags
    shown: Mapping[int, bytes]


_AS_IT_IS = _Form(ThinkTags(None), {})


def _encode(loaded: Loaded, text: str, wishes: Wishes) -> tuple[Tokens, _Form]:
    vocabulary = loaded.model.vocabulary
    if wishes.raw:
        return vocabulary.encode(text), _AS_IT_IS
    messages = [{"role": "user", "content": text}]
    if wishes.system:
        messages.insert(0, {"role": "system", "content": wishes.system})
    prompt = ChatTemplate(vocabulary).encode(messages)
    form = AnswerForm.of(vocabulary.chat_template or "")
    tags = form.think_tags(open=form.opened_by(prompt, vocabulary))
    return prompt, _Form(tags, form.shown(vocabulary))


def _open_trace(name: str | None) -> AbstractContextManager[TraceFile | None]:
    """Opens the file of --trace, before a model is loaded."""
    if name is None:
        return nullcontext()
    if name == "-":
        raise click.UsageError("--trace writes to a file: give its name, not -")
    return TraceFile(Path(name))


def _follow(runtime: Runtime, trace: TraceFile, prompt_tokens: int) -> None:
    """Traces every round of the next answer."""
    session, model = runtime.session, runtime.loaded.model.path.stem
    sampling = runtime.recipe.sampling
    trace.write(header(model, session.chain, runtime.tiers, sampling, prompt_tokens))
    choose = session.rule(prompt_tokens).target
    # A margin over the whole vocabulary takes as long as a round.
    quick = sampling.top_k or not sampling.temperature
    quick = quick and not runtime.recipe.cascade  # the choice is not from one row
    follow(session, trace.write, choose if quick else None)


def _paint(session: Session, wishes: Wishes) -> Paint | None:
    """How the answer is shown while it streams; None: not at all."""
    if wishes.as_json:
        return None
    if wishes.explain:
        return painter(session.chain, colours=has_colours(sys.stdout))
    return plain


def _explain(runtime: Runtime) -> None:
    """Prints the legend of --explain to stderr."""
    colours = has_colours(sys.stdout)
    for line in legend(runtime.session, runtime.tiers, colours=colours):
        echo(line, err=True)


def _stream(
    session: Session, prompt: Tokens, form: _Form, wishes: Wishes, paint: Paint | None
) -> tuple[str, list[int]]:
    """Generates the answer, shows it as it streams; returns its text and ids."""
    most = None if wishes.max_tokens < 0 else wishes.max_tokens
    ids, texts = list[int](), list[str]()
    tokens = session.generate(
        prompt, max_tokens=most, stop=wishes.stop, shown=form.shown
    )

    def noted() -> Iterator[Token]:
        for token in tokens:
            ids.append(token.id)
            yield token

    def tagged() -> Iterator[Token]:
        for token in form.tags.over(noted()):
            texts.append(token.text)
            yield token

    if paint is None:
        deque(tagged(), maxlen=0)
    else:
        _show(paint(tagged()))
    return "".join(texts), ids


def _show(pieces: Iterator[str]) -> None:
    """Writes an answer as it streams, and a newline at its end."""
    last = ""
    for piece in filter(None, pieces):
        echo(piece, nl=False)
        last = piece
    if not last.endswith("\n"):
        echo()


def _report(runtime: Runtime, answer: tuple[str, list[int]]) -> dict[str, object]:
    session, sampling = runtime.session, runtime.recipe.sampling
    stats, (text, ids) = session.stats, answer
    return {
        "text": text,
        "tokens": ids,
        "finish_reason": session.finish_reason,
        "usage": {
            "prompt_tokens": stats.prompt_tokens,
            "completion_tokens": stats.tokens,
            "total_tokens": stats.prompt_tokens + stats.tokens,
            "prompt_tokens_details": {"cached_tokens": stats.cached_tokens},
        },
        "sampling": {"temperature": sampling.temperature, "seed": sampling.seed},
        "kernels": runtime.loaded.options.kernels,
        "timings": stats.timings(),
        "speculative": stats.speculative(
            session.chain, session.off_reason, runtime.parameters()
        ),
        "exact": runtime.exactness(),
    }
