"""Records traces of real runs for `edgecs_bench.simulation.replay`.

    python -m edgecs_bench.record -m TARGET.gguf --prompts FILE.jsonl -o FILE.jsonl.gz
    python -m edgecs_bench.record -m TARGET.gguf --draft SMALL.gguf --prompts ... -o ...

The target answers every prompt once without drafts. Then the proposals of each drafter
are computed at every output position. As long as a proposal agrees with the answer, it
is the drafter's choice after the answer's own prefix, which a few wide calls give for
all positions; only the tokens after its first wrong token are drafted one by one.
`edgecs_bench.simulation.traces` describes the format. An interrupted recording resumes
where it stopped.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from edgecs.calibrate.bundled_drafters import all_bundled
from edgecs.core.context import Context
from edgecs.core.draft import Choose, Draft, LanguageModel, Rows, score_one
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import Loaded, LoadedDrafter, load, load_drafter
from edgecs.sampling.chain import Choices, Rule
from edgecs.sampling.settings import Sampling
from edgecs.session.session import Session
from edgecs.text.chat_template import ChatTemplate
from edgecs_bench.simulation.traces import (
    Proposals,
    Recording,
    Trace,
    read_traces,
    write_traces,
)
from edgecs_bench.suite.prompts import Prompt, read_prompts

_PIECE = 32  # tokens of an answer in one call of a drafter


class _Gaps:
    """A choice that records the gap between the two largest logits of each row."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self.confidence, self.margin = choose.confidence, choose.margin
        self.keeps, self.alternatives = choose.keeps, choose.alternatives
        self.seen: list[float] = []

    def __call__(self, row: NDArray[np.float32], tokens: NDArray[np.int32]) -> int:
        second, first = np.partition(row, -2)[-2:].tolist()
        self.seen.append(first - second)
        return self._choose(row, tokens)


def listen(session: Session, prompt: Prompt, ids: list[int], most: int) -> Trace:
    """The target's answer to a prompt, without proposals."""
    choices = session.rule(len(ids))
    gaps = _Gaps(choices.target)
    rule: Rule = lambda start: Choices(gaps, choices.drafters)  # noqa: E731
    said = [t.id for t in session.generate(ids, max_tokens=most, rule=rule)]
    return Trace(prompt.id, prompt.category, ids, said, gaps.seen[: len(said)])


class Asked:
    """Computes the proposals of a drafter at every position of one answer."""

    def __init__(self, model: LanguageModel, choose: Choose, trace: Trace) -> None:
        self._model = model
        self._choose = choose
        self._all = np.array([*trace.prompt, *trace.output], dtype=np.int32)
        self._start, self._n = len(trace.prompt), len(trace.output)
        self._prompt = Context(trace.prompt)
        self._on_path = self._read()  # [output position]: token and its probability

    def proposals(self, most: int) -> Proposals:
        """Up to `most` tokens for every output position."""
        drafts = [self._propose(at, most) for at in range(self._n)]
        return Proposals(
            [[token for token, _ in draft] for draft in drafts],
            [[p for _, p in draft] for draft in drafts],
        )

    def _propose(self, at: int, most: int) -> list[tuple[int, float]]:
        drafted: list[tuple[int, float]] = []
        agrees = True
        tail: list[int] = []
        while len(drafted) < most:
            here = at + len(drafted)
            if agrees and here < self._n:
                token, p = self._on_path[here]
                agrees = token == int(self._all[self._start + here])
            elif agrees:  # nothing is known beyond the recorded answer
                break
            else:
                context = self._context(at).with_tail(tail)
                token, p = self._choice(score_one(self._model, context), 0, context)
            tail.append(token)
            drafted.append((token, p))
        return drafted

    def _read(self) -> list[tuple[int, float]]:
        choices: list[tuple[int, float]] = []
        for start in range(0, self._n, _PIECE):
            context = self._context(start)
            piece = self._all[self._start + start :][: min(_PIECE, self._n - start) - 1]
            rows = score_one(self._model, context, Draft.chain(piece, "target"))
            for i in range(piece.size + 1):
                choices.append(self._choice(rows, i, context.with_tail(piece[:i])))
        return choices

    def _context(self, at: int) -> Context:
        """The context before a position; a shared buffer, so that cells are reused."""
        return self._prompt.with_tail(self._all[self._start :][:at])

    def _choice(self, rows: Rows, at: int, context: Context) -> tuple[int, float]:
        row = rows.logits[at]
        token = self._choose(row, context.tokens)
        return token, self._choose.confidence(row, context.tokens, token)


class AskedAlong:
    """The same for a drafter that reads the target's hidden states.

    The target computes its answer again, so that the states are available, and the
    drafter writes a draft at every position.
    """

    def __init__(
        self, model: LanguageModel, target: LanguageModel, choose: Choose, trace: Trace
    ) -> None:
        self._model, self._target, self._choose = model, target, choose
        self._prompt, self._output = trace.prompt, trace.output

    def proposals(self, most: int) -> Proposals:
        """Exactly `most` tokens for every output position."""
        context, drafts = Context(self._prompt), list[list[tuple[int, float]]]()
        self._target.reset()
        for at, token in enumerate(self._output):
            if not at % _PIECE:
                piece = self._output[at : at + _PIECE]
                score_one(self._target, context, Draft.chain(piece, "target"))
            drafts.append(self._draft(context, most))
            context.append((token,))
        self._target.reset()
        self._model.reset()
        return Proposals(
            [[token for token, _ in draft] for draft in drafts],
            [[p for _, p in draft] for draft in drafts],
        )

    def _draft(self, context: Context, most: int) -> list[tuple[int, float]]:
        drafted: list[tuple[int, float]] = []
        while len(drafted) < most:
            tail = [token for token, _ in drafted]
            here = context.with_tail(tail) if tail else context
            row = score_one(self._model, here).logits[0]
            token = self._choose(row, here.tokens)
            drafted.append((token, self._choose.confidence(row, here.tokens, token)))
        return drafted


def _asked(
    model: LanguageModel, target: LanguageModel, choose: Choose, trace: Trace
) -> Asked | AskedAlong:
    """Selects the class; a model that cannot review is a head."""
    if model.max_draft:
        return Asked(model, choose, trace)
    return AskedAlong(model, target, choose, trace)


def record(
    loaded: Loaded,
    drafters: list[LoadedDrafter],
    prompts: list[Prompt],
    most: int,
    sampling: Sampling,
    empty: Recording,
    output: Path,
) -> Recording:
    """Records the prompts that the file lacks, and writes it after each of them.

    Raises click.UsageError for a file that was recorded with other settings.
    """
    done = read_traces(output) if output.exists() else empty
    if replace(done, traces=()) != empty:
        raise click.UsageError(
            f"{output} was recorded with another target, other drafters or options: "
            "give another file"
        )
    traces, known = list(done.traces), {(t.category, t.id) for t in done.traces}
    template = ChatTemplate(loaded.model.vocabulary)
    with loaded.session([], 0, rule=loaded.rule(sampling)) as session:
        for prompt in prompts:
            if (prompt.category, prompt.id) in known:
                continue
            ids = template.encode([{"role": "user", "content": prompt.text}]).tolist()
            # Reused cells of the last prompt would split this one into other chunks,
            # and the answer might differ in its bits from that of a bench or a user.
            loaded.target.reset()
            trace = listen(session, prompt, ids, most)
            choose = session.rule(len(ids)).drafters
            for drafter in drafters:
                asked = _asked(drafter.model, loaded.target, choose, trace)
                trace.proposals[drafter.name] = asked.proposals(empty.draft_max)
            traces.append(trace)
            said = len(trace.output)
            click.echo(f"{prompt.category} {prompt.id}: {said} tokens", err=True)
            done = replace(empty, traces=tuple(traces))
            write_traces(output, done)
    return done


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option("--draft", "drafts", type=click.Path(path_type=Path), multiple=True)
@click.option(
    "--prompts", type=click.Path(path_type=Path), multiple=True, required=True
)
@click.option("--category", "categories", multiple=True)
@click.option("--per-category", default=8, show_default=True)
@click.option("-n", "--predict", "most", default=192, show_default=True)
@click.option(
    "--draft-max", default=8, show_default=True, help="Maximum tokens of a proposal."
)
@click.option("-c", "--ctx-size", "n_ctx", default=4096, show_default=True)
@click.option("--temp", "temperature", default=0.0, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(
    model: Path,
    drafts: tuple[Path, ...],
    prompts: tuple[Path, ...],
    categories: tuple[str, ...],
    per_category: int,
    most: int,
    draft_max: int,
    n_ctx: int,
    temperature: float,
    seed: int,
    output: Path,
) -> None:
    """Record the answers of a target and the proposals of drafters."""
    chosen = read_prompts(prompts, categories, per_category)
    sampling = Sampling()
    if temperature:
        sampling = Sampling(temperature, top_k=40, top_p=0.95, min_p=0.05, seed=seed)
    with ExitStack() as closing:
        loaded = closing.enter_context(load(model, LoadOptions(n_ctx=n_ctx)))
        paths = [all_bundled().get(str(path), path) for path in drafts]
        drafters = [closing.enter_context(load_drafter(p, loaded)) for p in paths]
        names = tuple(drafter.name for drafter in drafters)
        empty = Recording(model.stem, names, temperature, seed, draft_max, ())
        done = record(loaded, drafters, chosen, most, sampling, empty, output)
    tokens = sum(len(trace.output) for trace in done.traces)
    click.echo(f"{output}: {len(done.traces)} answers, {tokens} tokens")


if __name__ == "__main__":
    main()
