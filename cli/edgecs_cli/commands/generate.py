"""`edgecs generate`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click

from edgecs.core.context import Tokens
from edgecs.errors import ConfigError
from edgecs.runtime.loader import Loaded
from edgecs.session.session import Session, Token
from edgecs.session.trace import TraceFile, follow, header
from edgecs.text.chat_template import ChatTemplate
from edgecs_cli.commands.compare import check, compare
from edgecs_cli.console import echo, has_colours, say
from edgecs_cli.loading.contention import Contention
from edgecs_cli.loading.describe import answer_details, answer_line, introduce
from edgecs_cli.loading.explain import Paint, legend, painter, plain
from edgecs_cli.loading.opening import Opened, exactness, open_all
from edgecs_cli.options.common import (
    Section,
    Sectioned,
    common_options,
    drafter_options,
    model_options,
    option,
    schedule_options,
)
from edgecs_cli.options.sampling import sampling_options
from edgecs_cli.options.shared import Interrupt, reports_errors
from edgecs_cli.options.texts import read_stdin, read_text


@click.command(cls=Sectioned)
@model_options
@click.option(
    "-p", "--prompt", help="The prompt; without -p and -f it is read from stdin."
)
@click.option(
    "-f", "--file", type=click.Path(path_type=Path), help="Read the prompt from a file."
)
@click.option(
    "-n",
    "--predict",
    "--max-tokens",
    "max_tokens",
    type=click.IntRange(-1),
    default=-1,
    show_default=True,
    help="Most tokens to generate; -1: until the model stops or the context is full.",
)
@click.option("-sys", "--system", help="System message.")
@click.option("--stop", multiple=True, help="Stop at this text; may be repeated.")
@click.option("--raw", is_flag=True, help="No chat template: feed the text as it is.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@sampling_options
@drafter_options
@option(
    Section.SPECULATION,
    "--explain",
    is_flag=True,
    help="Show who wrote which part, in colours or as [name:text], and why.",
)
@option(
    Section.SPECULATION,
    "--compare",
    is_flag=True,
    help="Answer again without drafts and in llama.cpp's own loop, and say how fast "
    "each was.",
)
@option(
    Section.SPECULATION,
    "--trace",
    type=click.Path(),
    metavar="FILE",
    help="Write what every round did into a file, one line of JSON a round.",
)
@schedule_options
@common_options
@reports_errors
def generate(**values: Any) -> int:
    """Answer one prompt.

    The answer goes to stdout, everything else to stderr.

    \b
    edgecs generate -m smollm2-135m-instruct -p "What is a llama?"
    edgecs generate -m ./model.gguf -f question.txt -n 256 --json
    git diff | edgecs generate -m user/repo:Q4_K_M --system "Review this."
    edgecs generate -m big.gguf --draft small.gguf --k-matrix "5,10;0,10" -f task.txt
    edgecs generate -m ./model.gguf -f notes.txt --explain --trace rounds.jsonl
    edgecs generate -m ./model.gguf -f fix-this-code.txt --temp 0 --compare
    """
    if values["explain"] and values["as_json"]:
        raise click.UsageError(
            "--explain and --json exclude each other: --trace FILE "
            "tells a program who wrote what"
        )
    if values["compare"]:
        check(values)
    text = read_prompt(values["prompt"], values["file"])
    interrupt = Interrupt()
    with (
        _open_trace(values["trace"]) as trace,
        open_all(values, interrupt) as opened,
        interrupt,
    ):
        introduce(opened, quiet=values["quiet"], verbose=values["verbose"])
        session = opened.session
        prompt = _encode(opened.loaded, text, values)
        if trace:
            _follow(opened, trace, prompt.size)
        contention = Contention()
        answer = _stream(session, prompt, values, _paint(session, values))
        if values["as_json"]:
            echo(json.dumps(_report(opened, answer)))
        reason = session.finish_reason
        if values["explain"] and not values["quiet"]:
            _explain(opened)
        say(_summary(opened, drawn=values["seed"] < 0), quiet=values["quiet"])
        for line in answer_details(session) if values["verbose"] else ():
            say(line, quiet=values["quiet"])
        if busy := contention.line():
            say(busy, quiet=values["quiet"])
        if values["compare"]:
            for line in compare(opened, prompt, values):
                echo(line, err=True)
    return 130 if reason == "cancelled" else 0


def _summary(opened: Opened, *, drawn: bool) -> str:
    """The answer in a line, with the seed if it was drawn and meant something."""
    session, sampling = opened.session, opened.request.sampling
    seed = sampling.seed if drawn and not sampling.is_greedy else None
    return answer_line(session.stats, session.finish_reason, seed=seed)


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from an option, a file or stdin; raises ConfigError."""
    if prompt is not None and file is not None:
        raise click.UsageError("-p and -f exclude each other: give one of them")
    if prompt is not None:
        text = prompt
    elif file is not None:
        text = read_text(file)
    elif sys.stdin.isatty():
        raise click.UsageError("no prompt: give -p TEXT or -f FILE, or pipe text in")
    else:
        text = read_stdin()
    if not text.strip():
        raise ConfigError("the prompt is empty: give some text to answer")
    return text


def _encode(loaded: Loaded, text: str, values: dict[str, Any]) -> Tokens:
    vocabulary = loaded.model.vocabulary
    if values["raw"]:
        return vocabulary.encode(text)
    messages = [{"role": "user", "content": text}]
    if values["system"]:
        messages.insert(0, {"role": "system", "content": values["system"]})
    return ChatTemplate(vocabulary).encode(messages)


def _open_trace(name: str | None) -> AbstractContextManager[TraceFile | None]:
    """The file of --trace, made before a model is loaded."""
    if name is None:
        return nullcontext()
    if name == "-":
        raise click.UsageError("--trace writes to a file: give its name, not -")
    return TraceFile(Path(name))


def _follow(opened: Opened, trace: TraceFile, prompt_tokens: int) -> None:
    """Has every round of the next answer written down."""
    session, model = opened.session, opened.loaded.model.path.stem
    sampling = opened.request.sampling
    trace.write(header(model, session.chain, opened.tiers, sampling, prompt_tokens))
    choose = session.rule(prompt_tokens).target
    # A margin over the whole vocabulary would take as long as a round.
    quick = sampling.top_k or not sampling.temperature
    follow(session, trace.write, choose if quick else None)


def _paint(session: Session, values: dict[str, Any]) -> Paint | None:
    """How the answer is shown while it comes; None: not at all."""
    if values["as_json"]:
        return None
    if values["explain"]:
        return painter(session.chain, colours=has_colours(sys.stdout))
    return plain


def _explain(opened: Opened) -> None:
    """Who wrote what and why, on stderr."""
    colours = has_colours(sys.stdout)
    for line in legend(opened.session, opened.tiers, colours=colours):
        echo(line, err=True)


def _stream(
    session: Session, prompt: Tokens, values: dict[str, Any], paint: Paint | None
) -> tuple[str, list[int]]:
    """Runs the answer, shows it as it comes; returns its text and ids."""
    limit, said = values["max_tokens"], list[Token]()

    def noted() -> Iterator[Token]:
        most = None if limit < 0 else limit
        for token in session.generate(prompt, max_tokens=most, stop=values["stop"]):
            said.append(token)
            yield token

    if paint is None:
        deque(noted(), maxlen=0)
    else:
        _show(paint(noted()))
    return "".join(token.text for token in said), [token.id for token in said]


def _show(pieces: Iterator[str]) -> None:
    """Writes an answer as it comes, and a newline at its end."""
    last = ""
    for piece in filter(None, pieces):
        echo(piece, nl=False)
        last = piece
    if not last.endswith("\n"):
        echo()


def _report(opened: Opened, answer: tuple[str, list[int]]) -> dict[str, object]:
    session, sampling = opened.session, opened.request.sampling
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
        "kernels": opened.loaded.options.kernels,
        "timings": stats.timings(),
        "speculative": stats.speculative(
            session.chain, session.off_reason, opened.parameters()
        ),
        "exact": exactness(opened),
    }
