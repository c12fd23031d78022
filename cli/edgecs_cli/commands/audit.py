"""`edgecs audit`: checks whether drafts change answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from edgecs.audit.report import NO_CLASS, Fork, Prompt, Report, Run
from edgecs.audit.runner import Subject
from edgecs.audit.runner import audit as examine
from edgecs.runtime.builder import Runtime
from edgecs.text.chat_template import ChatTemplate
from edgecs.text.detokenizer import Tokenizer
from edgecs_bench.text_tables import Row
from edgecs_cli.commands.audit_prompts import Encode, built_in, read_prompts
from edgecs_cli.console import echo, echo_table
from edgecs_cli.loading.describe import introduce
from edgecs_cli.loading.opening import opened
from edgecs_cli.options.common import (
    cascade_options,
    common_options,
    drafter_options,
    model_options,
    schedule_options,
)
from edgecs_cli.options.kinds import Whole
from edgecs_cli.options.recipe import Call, read_recipe, taken
from edgecs_cli.options.remembering import audited_memory_option
from edgecs_cli.options.sampling import sampling_options
from edgecs_cli.options.sections import Sectioned
from edgecs_cli.options.shared import Interrupt, reports_errors


@dataclass(frozen=True)
class Wishes:
    """Options of the audit."""

    file: Path | None
    max_tokens: int
    limit: int | None
    compare_kernels: bool
    as_json: bool


@click.command(cls=Sectioned)
@model_options
@click.option(
    "--prompts",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON Lines with turns, prompt or text; default: built-in prompts of several "
    "kinds and lengths.",
)
@click.option(
    "-n",
    "--predict",
    "--max-tokens",
    "max_tokens",
    type=Whole(2),
    default=64,
    show_default=True,
    help="Tokens per answer; the first one is not drafted.",
)
@click.option("--limit", type=Whole(1), help="Use only the first N prompts.")
@click.option(
    "--compare-kernels",
    is_flag=True,
    help="Compare edgecs's kernels with llama.cpp's instead: best tokens, logits and "
    "perplexity on the prompts.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@sampling_options
@drafter_options
@schedule_options
@audited_memory_option
@cascade_options
@common_options
@reports_errors
def audit(**values: Any) -> None:
    """Check that drafts do not change answers.

    Answers each prompt with plain decoding, as `edgecs generate` does, and twice with
    all permitted batch widths forced in turn, and compares the tokens. Prints every
    difference; one in a strict tier gives exit code 5.

    \b
    edgecs audit -m smollm2-135m-instruct
    edgecs audit -m ./model.gguf --exact strict -ctk q8_0 -ctv q8_0 -n 128
    edgecs audit -m big.gguf --draft small.gguf --temp 0.8 --seed 1 --json
    edgecs audit -m ./model.gguf --compare-kernels
    """
    wishes, call, recipe = (
        taken(Wishes, values),
        taken(Call, values),
        read_recipe(values),
    )
    if recipe.store:  # its answers are not those of a user
        recipe = replace(recipe, store=replace(recipe.store, keeps=False))
    given = read_prompts(wishes.file) if wishes.file else None

    def prompts_of(encode: Encode) -> list[Prompt]:
        prompts = [Prompt(name, encode(text)) for name, text in given or ()]
        return (prompts or built_in(encode))[: wishes.limit]

    if wishes.compare_kernels:
        from edgecs_cli.commands.audit_kernels import compare_kernels

        # As texts: without the chat template.
        found = compare_kernels(recipe, call, lambda v: prompts_of(v.encode))
        for line in [json.dumps(found.fields())] if wishes.as_json else found.lines():
            echo(line)
        return
    if recipe.accept != "shared":
        raise click.UsageError(
            f"with --accept {recipe.accept} answers have the model's distribution but "
            "not the tokens of plain decoding, so they cannot be compared: leave it out"
        )
    if recipe.cascade:
        raise click.UsageError(
            "with --cascade-rule answers are not the model's own, so there is nothing "
            "to audit: leave it and --alpha out"
        )
    if not recipe.drafting:
        raise click.UsageError("--no-spec and --draft-max 0 leave nothing to audit")
    interrupt = Interrupt()
    with opened(recipe, call, interrupt) as runtime, interrupt:
        introduce(runtime, quiet=call.quiet, verbose=True)
        vocabulary, most = runtime.loaded.model.vocabulary, wishes.max_tokens
        prompts = prompts_of(_encoder(vocabulary))
        report = _examine(runtime, prompts, most, call.say)
        if wishes.as_json:
            echo(json.dumps(_plain(_data(runtime, report, most))))
        else:
            show(report, vocabulary)
    report.check()


# Greedy answers can be repeated without a seed.
next(p for p in audit.params if p.name == "temperature").default = 0.0


def _examine(
    runtime: Runtime, prompts: list[Prompt], most: int, say: Callable[[str], None]
) -> Report:
    """Runs the audit with the schedule, limits and rule of `generate`."""
    session = runtime.session
    session.close()  # every answer has a session of its own
    subject = Subject(
        session.target,
        session.tokenizer,
        session.cascade.limits,
        session.rule,
        most,
    )
    schedule = session.cascade.schedule
    return examine(subject, prompts, lambda: schedule, say)


def _encoder(vocabulary: Tokenizer) -> Encode:
    """Encodes text, with the chat template if there is one."""
    if not vocabulary.chat_template:
        return vocabulary.encode
    template = ChatTemplate(vocabulary)
    return lambda text: template.encode([{"role": "user", "content": text}])


def show(report: Report, vocabulary: Tokenizer) -> None:
    """Prints tables; the last line is a summary."""
    for prompt in report.skipped:
        echo(f"skipped {prompt.id}: {prompt.tokens.size} tokens leave no room")
    _table(
        ["prompt", "tokens", "answer", "tier", "widths forced"],
        [
            [
                plain.prompt.id,
                plain.prompt.tokens.size,
                len(plain.tokens),
                plain.tier,
                " ".join(map(str, plain.widths)) or NO_CLASS,
            ]
            for plain in report.prompts
        ],
        words=(0, 3, 4),
    )
    titles = ["drafts", "answers", "identical", "tokens", "accepted", "rejected"]
    _table([*titles, "rounds by width"], map(_row, report.runs), words=(0, 6))
    if report.no_class:
        echo(f"{NO_CLASS} for {', '.join(report.no_class)}: {report.why}")
    for run in report.runs:
        if not run.proves:
            echo(f"{run.name} proves nothing: {_missing(run)}")
    if report.forks:
        titles = ["fork", "drafts", "token", "context", "width", "tier", "top-2 gap"]
        rows = [_fork_row(r, f, vocabulary) for r in report.runs for f in r.forks]
        _table([*titles, "plain", "instead"], rows, words=(0, 1, 5, 7, 8))
        echo("forks per 1,000 tokens: " + "; ".join(_rates(report)))
    echo(report.summary())


def _row(run: Run) -> list[object]:
    widths = " ".join(f"{width}:{n}" for width, n in sorted(run.widths.items()))
    counts = [run.answers, run.identical, run.tokens, run.accepted, run.rejected]
    return [run.name, *counts, widths]


def _missing(run: Run) -> str:
    if not run.accepted and not run.rejected:
        return "nothing was drafted"
    return f"no token was {'rejected' if run.accepted else 'accepted'}"


def _fork_row(run: Run, fork: Fork, vocabulary: Tokenizer) -> list[object]:
    gap = "-" if fork.gap is None else f"{fork.gap:.4g}"
    said = [
        "-" if token is None else repr(vocabulary.piece(token).decode(errors="replace"))
        for token in (fork.plain, fork.said)
    ]
    place = [fork.prompt, run.name, fork.token, fork.context, fork.width]
    return [*place, fork.tier, gap, *said]


def _rates(report: Report) -> Iterator[str]:
    for tier, (forks, tokens) in report.rates().items():
        yield f"{tier} {1000 * forks / tokens:.2f} ({forks} in {tokens:,})"


def _table(titles: Row, rows: Iterable[Row], words: Collection[int]) -> None:
    echo_table([titles, *rows], words=words)
    echo()


def _data(runtime: Runtime, report: Report, most: int) -> dict[str, Any]:
    """All results, for --json."""
    loaded, session, recipe = runtime.loaded, runtime.session, runtime.recipe
    return {
        "model": loaded.model.path.name,
        "description": loaded.model.description,
        "options": {**asdict(loaded.options), "n_ctx": loaded.target.n_ctx},
        "predict": most,
        "sampling": asdict(recipe.sampling),
        "chain": session.chain,
        "schedule": session.cascade.schedule.describe(),
        "exact": recipe.exact,
        "tiers": report.tiers,
        "classes": session.cascade.limits.classes.state(),
        "no_class": dict.fromkeys(report.no_class, report.why),
        "prompts": [
            {
                "id": plain.prompt.id,
                "tokens": plain.prompt.tokens.size,
                "tier": plain.tier,
                "widths": plain.widths,
                "answer": plain.tokens,
            }
            for plain in report.prompts
        ],
        "skipped": [{"id": p.id, "tokens": p.tokens.size} for p in report.skipped],
        "runs": [_run_data(run) for run in report.runs],
        "identical": not report.forks,
        "strict_broken": bool(report.broken),
        "summary": report.summary(),
    }


def _run_data(run: Run) -> dict[str, Any]:
    """A run as plain values; counters are sorted by key."""
    return {
        "drafts": run.drafter,
        "forced": run.forced,
        "answers": run.answers,
        "identical": run.identical,
        "tokens": run.tokens,
        "tokens_by_tier": dict(sorted(run.tiers.items())),
        "rounds_by_width": dict(sorted(run.widths.items())),
        "accepted": run.accepted,
        "rejected": run.rejected,
        "proves": run.proves,
        "forks": [fork._asdict() for fork in run.forks],
    }


def _plain(value: Any) -> Any:
    """The value, with non-finite numbers as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
