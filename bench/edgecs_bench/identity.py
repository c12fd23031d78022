"""Are the tokens with speculation those of plain decoding, token by token?

    python -m edgecs_bench.identity -m MODEL.gguf --reference FILE.jsonl

The reference is somebody else's greedy decoding: one JSON object a line with
`prompt_tokens` and `tokens`. Every prompt is run for every draft length with two
drafters: Max-Gram, and one that knows the reference and is wrong half of the time. A
run counts only if it could have failed: tokens both accepted and rejected, and at least
a fifth of the rounds wider than one token. Forks are listed with the width of their
round.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from edgecs.draft import Drafter
from edgecs.load import Loaded, load
from edgecs.maxgram import MaxGram
from edgecs.options import LoadOptions
from edgecs.stats import Stats
from edgecs.testing import ScriptedDrafter
from edgecs_bench.report import finish, table

Reference = list[dict[str, Any]]
WIDER = 0.2  # least share of rounds that verify something
FORKED = 5  # exit code when tokens differ, or when a run proves nothing


def run(
    loaded: Loaded, reference: Reference, kind: str, draft_max: int
) -> dict[str, Any]:
    """All prompts with one drafter and one draft length; a row of the table."""
    widths: Counter[int] = Counter()
    accepted = tested = tokens = 0
    forks = []
    for line in reference:
        prompt, expected = line["prompt_tokens"], line["tokens"]
        loaded.target.reset()
        drafters = [drafter(kind, prompt, expected, loaded.target.vocab_size)]
        # Where the reference ended by itself, one more token would be too many.
        room = expected[-1] in loaded.model.vocabulary.ends
        with loaded.session(drafters, draft_max) as session:
            stream = session.generate(prompt, max_tokens=len(expected) + room)
            said = [token.id for token in stream]
        stats = session.stats
        widths.update(stats.rounds_by_width)
        accepted, tested = accepted + stats.accepted, tested + stats.tested
        tokens += len(said)
        if said != expected:
            forks.append(fork(line, said, expected, stats))
    rounds = widths.total()
    wider = 1 - widths[1] / max(1, rounds)
    return {
        "drafter": kind,
        "draft_max": draft_max,
        "prompts": len(reference),
        "identical": len(reference) - len(forks),
        "tokens": tokens,
        "rounds": rounds,
        "rounds_by_width": dict(sorted(widths.items())),
        "wider_than_1": round(wider, 3),
        "accepted": accepted,
        "rejected": tested - accepted,
        "counts": accepted > 0 and tested > accepted and wider >= WIDER,
        "forks": forks,
    }


def drafter(kind: str, prompt: list[int], said: list[int], size: int) -> Drafter:
    """A fresh drafter, so that no prompt knows another one's answer."""
    if kind == "mag":
        return MaxGram()
    return ScriptedDrafter([*prompt, *said], wrong=0.5, vocab_size=size, name=kind)


def fork(
    line: dict[str, Any], said: list[int], expected: list[int], stats: Stats
) -> dict[str, object]:
    """Where the answer left the reference, and in a round of which width."""
    pairs = list(zip(said, expected, strict=False))
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    emitted, width = 1, 0  # the first token comes with the prompt
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
def main(model: Path, reference: Path, lengths: str, **options: Any) -> None:
    """Compare speculative with plain greedy decoding."""
    lines = [json.loads(line) for line in reference.read_text().splitlines()]
    with load(model, LoadOptions(**options)) as loaded:
        rows = list(_rows(loaded, lines, [int(k) for k in lengths.split(",")]))
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
        "all_runs_count": all(row["counts"] for row in rows),
        "runs": rows,
    }
    finish(result)
    sys.exit(0 if result["identical"] and result["all_runs_count"] else FORKED)


def _rows(
    loaded: Loaded, lines: Reference, lengths: list[int]
) -> Iterator[dict[str, Any]]:
    for kind in ("mag", "half-wrong"):
        for length in lengths:
            row = run(loaded, lines, kind, length)
            same = f"{row['identical']} of {row['prompts']} identical"
            click.echo(f"{kind}, drafts up to {length}: {same}", err=True)
            yield row


if __name__ == "__main__":
    main()
