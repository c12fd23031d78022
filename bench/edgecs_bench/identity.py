"""Compares the tokens with speculation with those of plain decoding.

    python -m edgecs_bench.identity -m MODEL.gguf --reference FILE.jsonl
    python -m edgecs_bench.identity -m MODEL.gguf --reference FILE.jsonl \\
        --draft SMALL.gguf --k-matrix "5,10;0,10" --temp 0.8 --seed 1 --seed 2

The reference is greedy decoding by another runtime: one JSON object per line with
`prompt_tokens` and `tokens`. For every temperature above 0 and every seed the reference
is edgecs itself without speculation. Without --draft every prompt is run for every
draft length with two drafters: Max-Gram, and one that reads the reference and is wrong
half of the time; with --draft, as a cascade for every K matrix. A run counts only if it
could have failed: some tokens were accepted and some rejected, and at least a fifth of
the rounds were wider than one token. Forks are listed with the width of their round.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edgecs.core.draft import Drafter
from edgecs.core.faults import refuse
from edgecs.decoding.cascade import stack
from edgecs.decoding.kmatrix import KMatrix
from edgecs.drafters.maxgram import MaxGram
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import Loaded, LoadedDrafter, load, load_drafter
from edgecs.sampling.chain import Rule
from edgecs.sampling.settings import Sampling
from edgecs.session.stats import Stats
from edgecs.testing.fakes import ScriptedDrafter
from edgecs_bench.report.summary import finish, table

Reference = list[dict[str, Any]]
WIDER = 0.2  # minimum share of rounds that verify a draft
FORKED = 5  # exit code if tokens differ, or if a run cannot prove anything


@dataclass(frozen=True)
class Case:
    """Drafters with draft lengths; created for each prompt, so they share no state."""

    drafter: str
    counts: str
    make: Callable[[list[int], list[int]], tuple[list[Drafter], Sequence[int]]]


def run(
    loaded: Loaded, reference: Reference, sampling: Sampling, case: Case
) -> dict[str, Any]:
    """Runs all prompts with one rule and one case; returns a row of the table."""
    widths: Counter[int] = Counter()
    accepted = tested = tokens = 0
    forks, rule = [], loaded.rule(sampling)
    for line in reference:
        prompt, expected = line["prompt_tokens"], line["tokens"]
        loaded.target.reset()
        drafters, counts = case.make(prompt, expected)
        # If the reference ended by itself, more tokens than it has would be an error.
        room = expected[-1] in loaded.model.vocabulary.ends
        with loaded.session(drafters, counts, rule=rule) as session:
            stream = session.generate(prompt, max_tokens=len(expected) + room)
            said = [token.id for token in stream]
        stats = session.stats
        refuse(stats.faults)
        widths.update(stats.rounds_by_width)
        accepted, tested = accepted + stats.accepted, tested + stats.tested
        tokens += len(said)
        if said != expected:
            forks.append(fork(line, said, expected, stats))
    rounds = widths.total()
    wider = 1 - widths[1] / max(1, rounds)
    return {
        "drafter": case.drafter,
        "counts": case.counts,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "prompts": len(reference),
        "identical": len(reference) - len(forks),
        "tokens": tokens,
        "rounds": rounds,
        "rounds_by_width": dict(sorted(widths.items())),
        "wider_than_1": round(wider, 3),
        "accepted": accepted,
        "rejected": tested - accepted,
        "proves": accepted > 0 and tested > accepted and wider >= WIDER,
        "forks": forks,
    }


def plain(loaded: Loaded, reference: Reference, rule: Rule) -> Reference:
    """Answers the same prompts without speculation."""
    answers = []
    for line in reference:
        loaded.target.reset()
        with loaded.session([], 0, rule=rule) as session:
            stream = session.generate(
                line["prompt_tokens"], max_tokens=len(line["tokens"])
            )
            answers.append({**line, "tokens": [token.id for token in stream]})
    return answers


def scripted(loaded: Loaded, length: int) -> Iterator[Case]:
    """Max-Gram, and a drafter that reads the answer and is wrong half of the time."""
    size = loaded.target.vocab_size
    yield Case("mag", str(length), lambda prompt, said: ([MaxGram()], [length]))
    yield Case(
        "half-wrong",
        str(length),
        lambda prompt, said: (
            [ScriptedDrafter([*prompt, *said], wrong=0.5, vocab_size=size)],
            [length],
        ),
    )


def cascade(
    loaded: Loaded, drafters: list[LoadedDrafter], matrix: KMatrix, min_match: int
) -> Case:
    """A cascade of models above Max-Gram."""
    models = [drafter.named for drafter in drafters]
    ends = loaded.model.vocabulary.ends

    def make(prompt: list[int], said: list[int]) -> tuple[list[Drafter], Sequence[int]]:
        last = MaxGram(min_match=min_match)
        return stack(models, last, matrix, ends=ends), matrix.counts(0)

    chain = [*(drafter.name for drafter in drafters), "mag"]
    return Case(" <- ".join(chain), str(matrix), make)


def fork(
    line: dict[str, Any], said: list[int], expected: list[int], stats: Stats
) -> dict[str, object]:
    """Where the answer differs from the reference, and the width of that round."""
    pairs = list(zip(said, expected, strict=False))
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    emitted, width = 1, 0  # the prefill gives the first token
    for record in stats.records:
        if emitted > at:
            break
        emitted, width = emitted + len(record.accepted) + 1, record.width
    context = len(line["prompt_tokens"]) + at
    return {"id": line.get("id"), "token": at, "context": context, "width": width}


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option("--reference", type=click.Path(path_type=Path), required=True)
@click.option("-c", "--ctx-size", "n_ctx", default=4096, show_default=True)
@click.option("-ctk", "type_k", default="f16", show_default=True)
@click.option("-ctv", "type_v", default="f16", show_default=True)
@click.option("--draft-max", "lengths", default="1,3,7,15", show_default=True)
@click.option("--draft", "drafts", type=click.Path(path_type=Path), multiple=True)
@click.option("--k-matrix", "matrices", multiple=True)
@click.option("--mag-min-match", "min_match", default=1, show_default=True)
@click.option("--temp", "temperatures", type=float, multiple=True, default=[0.0])
@click.option("--seed", "seeds", type=int, multiple=True, default=[0])
def main(
    model: Path,
    reference: Path,
    lengths: str,
    drafts: tuple[Path, ...],
    matrices: tuple[str, ...],
    min_match: int,
    temperatures: tuple[float, ...],
    seeds: tuple[int, ...],
    **options: Any,
) -> None:
    """Compare speculative with plain decoding."""
    lines = [json.loads(line) for line in reference.read_text().splitlines()]
    with ExitStack() as closing:
        loaded = closing.enter_context(load(model, LoadOptions(**options)))
        drafters = [closing.enter_context(load_drafter(d, loaded)) for d in drafts]
        cases = [
            cascade(loaded, drafters, KMatrix.parse(text), min_match)
            for text in matrices
        ]
        if not drafters:
            cases = [
                case for k in lengths.split(",") for case in scripted(loaded, int(k))
            ]
        samplings = [
            Sampling(t, top_k=40, top_p=0.95, min_p=0.05, seed=seed)
            if t
            else Sampling()
            for t in temperatures
            for seed in (seeds if t else (0,))
        ]
        rows = list(_rows(loaded, lines, samplings, cases))
    shown = [{k: v for k, v in row.items() if k != "forks"} for row in rows]
    for row in shown:
        widths = row["rounds_by_width"].items()
        row["rounds_by_width"] = " ".join(f"{n}:{k}" for n, k in widths)
    table(shown)
    prompt_sizes = [len(line["prompt_tokens"]) for line in lines]
    result = {
        "model": model.name,
        **options,
        "prompt_tokens": [min(prompt_sizes), max(prompt_sizes)],
        "identical": all(row["identical"] == row["prompts"] for row in rows),
        "all_runs_prove": all(row["proves"] for row in rows),
        "runs": rows,
    }
    finish(result)
    sys.exit(0 if result["identical"] and result["all_runs_prove"] else FORKED)


def _rows(
    loaded: Loaded, lines: Reference, samplings: list[Sampling], cases: list[Case]
) -> Iterator[dict[str, Any]]:
    for sampling in samplings:
        greedy = sampling.is_greedy
        reference = lines if greedy else plain(loaded, lines, loaded.rule(sampling))
        for case in cases:
            row = run(loaded, reference, sampling, case)
            rule = "greedy" if greedy else f"seed {sampling.seed}"
            same = f"{row['identical']} of {row['prompts']} identical"
            click.echo(f"{case.drafter}, {case.counts}, {rule}: {same}", err=True)
            yield row


if __name__ == "__main__":
    main()
