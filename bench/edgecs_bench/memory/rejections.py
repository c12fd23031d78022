"""What a target says after tokens that it rejects: recorded for replays of write-back.

    python -m edgecs_bench.memory.rejections -m TARGET.gguf TRACES.jsonl.gz -o FILE

Max-Gram is asked at every position of the answers. Where it proposes a wrong token, the
target's best token after this and each later one of the first DRAFTED is recorded,
which a call of the whole draft computes anyway. The file is JSON Lines, compressed with
gzip; the first line is

    {"format": "edgecs-rejections/1", "target": NAME}

every other line is the beginning of one answer:

    {"answer": its number in the traces, "said": [[ids], ...]}

said[i] holds the best tokens after the wrong ones that were proposed for output[i] and
later ones, often none. Answers are recorded in an order that mixes scenarios, and an
interrupted recording resumes where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from edgecs.core.context import Context
from edgecs.core.draft import Draft, LanguageModel, score_one
from edgecs.drafters.maxgram import MaxGram
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import load
from edgecs_bench.memory.traces import Answer, read_answers
from edgecs_bench.simulation.trace_lines import Line, read_lines, write_lines

FORMAT = "edgecs-rejections/1"
FOLDER = Path(__file__).parents[1] / "data" / "rejections"
DRAFTED = 6  # tokens of a proposal

STRIDE = 7  # answers between two that are recorded one after the other

Said = list[list[int]]
"""What an answer's target said after wrong tokens, [position of the output]."""


def said_after_wrong(model: LanguageModel, answer: Answer, most: int) -> Said:
    """The target's best tokens after wrong ones of Max-Gram, at the first positions."""
    mag, context = MaxGram(), Context([*answer.prompt, answer.output[0]])
    found: Said = [[]]
    for at in range(1, min(most, len(answer.output))):
        tokens, rest = mag.continuation(context, DRAFTED), answer.output[at:]
        right = agreed(tokens, rest)
        if right < len(tokens):
            rows = score_one(model, context, Draft.chain(tokens, "mag")).logits
            found.append(rows[right + 1 :].argmax(axis=1).tolist())
        else:
            found.append([])
        context.append(rest[:1])
    return found


def agreed(tokens: Sequence[int], rest: Sequence[int]) -> int:
    """The number of tokens that are right."""
    pairs = zip(tokens, rest, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(tokens))


def read_rejections(path: Path) -> dict[int, Said]:
    """What was recorded, by the number of the answer; raises click.UsageError."""
    return read_lines(
        path,
        FORMAT,
        lambda head, lines: {int(line["answer"]): _said(line) for line in lines},
        what="a file of rejections",
        described="edgecs_bench/memory/rejections.py",
    )


def _said(line: Line) -> Said:
    found = line["said"]
    if not all(type(token) is int and token >= 0 for row in found for token in row):
        raise ValueError("a token id is not a number")
    return [list(row) for row in found]


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option("-c", "--ctx-size", "n_ctx", default=4096, show_default=True)
@click.option("-t", "--threads", default=0, show_default="one per core")
@click.option("--most", default=64, show_default=True, help="Tokens of an answer.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.argument("file", type=click.Path(path_type=Path))
def main(
    model: Path, n_ctx: int, threads: int, most: int, output: Path, file: Path
) -> None:
    """Record what a target says after tokens that it rejects."""
    target, answers = read_answers(file)
    known = read_rejections(output) if output.exists() else {}
    order = sorted(range(len(answers)), key=lambda number: number % STRIDE)
    with load(model, LoadOptions(n_ctx=n_ctx, threads=threads, max_draft=8)) as loaded:
        for number in order:
            if number in known:
                continue
            known[number] = said_after_wrong(loaded.target, answers[number], most)
            head = {"format": FORMAT, "target": target}
            lines = ({"answer": n, "said": said} for n, said in known.items())
            write_lines(output, (head, *lines))
            click.echo(f"{len(known)} answers", err=True)
    click.echo(f"{output}: {len(known)} answers")


if __name__ == "__main__":
    main()
    sys.exit(0)
