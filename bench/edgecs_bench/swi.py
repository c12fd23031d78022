"""The paper's comparison of CS Drafting with speculative decoding, on our traces.

    python -m edgecs_bench.swi -m TARGET.gguf --draft DRAFTER.gguf --prompts FILE.jsonl

The measure is the paper's standardised walltime improvement (SWI): tokens divided by
forwards weighted with a cost per forward; Max-Gram is free. SWI is not throughput: it
ignores how the time of a call grows with its width. There are two cost settings, as in
the paper: the ratio of parameters, and the ratio of measured times of one token.

The target answers every prompt once, greedily. Then, as in the official code, a table
of its answers replaces it, and every schedule is run against that table with the real
drafter. Speculative decoding is the drafter alone with its best k; CS Drafting is
drafter and Max-Gram with the best K matrix. Both are chosen on all prompts together.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np

from edgecs.core.context import Context
from edgecs.core.draft import score_one
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import Loaded, LoadedDrafter, load, load_drafter
from edgecs.text.chat_template import ChatTemplate
from edgecs.theory import walltime_improvement
from edgecs_bench.report.summary import finish, table
from edgecs_bench.simulation.forwards import Count, Schedule, Trace, play_all
from edgecs_bench.suite.prompts import Prompt, read_prompts


def improvement(counts: Sequence[Count], cost: float) -> float:
    """SWI of several answers. cost: of a drafter forward; a target forward costs 1."""
    tokens, target, drafter = map(sum, zip(*counts, strict=True))
    forwards = {"target": target, "drafter": drafter}
    return walltime_improvement(tokens, forwards, {"target": 1.0, "drafter": cost})


def listen(
    loaded: Loaded, prompts: Sequence[Prompt], most: int
) -> tuple[list[Trace], float]:
    """The target's answer to each prompt, and its median seconds per token."""
    template = ChatTemplate(loaded.model.vocabulary)
    traces, seconds = [], []
    with loaded.session([], 0) as session:
        for prompt in prompts:
            ids = template.encode([{"role": "user", "content": prompt.text}]).tolist()
            said = [token.id for token in session.generate(ids, max_tokens=most)]
            if len(said) > 1:
                traces.append(Trace(prompt, ids, said))
                seconds.append(session.stats.decode_seconds / (len(said) - 1))
            click.echo(f"{prompt.category} {prompt.id}: {len(said)} tokens", err=True)
    return traces, float(np.median(seconds))


def keep(path: Path, traces: Sequence[Trace], seconds: float) -> None:
    """Writes the seconds per token, then one trace per line."""
    lines = [json.dumps({"seconds": seconds})]
    lines += [json.dumps(trace._asdict()) for trace in traces]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def kept(path: Path | None) -> tuple[list[Trace], float] | None:
    """The traces that `keep` wrote; None: there is no file."""
    if path is None or not path.exists():
        return None
    first, *rest = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    traces = [Trace(**{**line, "prompt": Prompt(*line["prompt"])}) for line in rest]
    return traces, float(first["seconds"])


def seconds_per_token(drafter: LoadedDrafter, trace: Trace) -> float:
    """Median time of a token of the drafter."""
    spans, context = [], Context(trace.ids)
    for token in trace.said:
        start = perf_counter()
        score_one(drafter.model, context)
        spans.append(perf_counter() - start)
        context.append([token])
    return float(np.median(spans[1:]))


def _best(
    played: dict[Schedule, list[Count]], cost: float, among: list[Schedule]
) -> Schedule:
    return max(among, key=lambda schedule: improvement(played[schedule], cost))


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option("--draft", type=click.Path(path_type=Path), required=True)
@click.option(
    "--prompts", type=click.Path(path_type=Path), multiple=True, required=True
)
@click.option("--category", "categories", multiple=True)
@click.option("--per-category", default=5, show_default=True)
@click.option("-n", "--predict", "most", default=128, show_default=True)
@click.option("-c", "--ctx-size", "n_ctx", default=2048, show_default=True)
@click.option(
    "--traces",
    type=click.Path(path_type=Path),
    help="Save the target's answers here and reuse them the next time.",
)
def main(
    model: Path,
    draft: Path,
    prompts: tuple[Path, ...],
    categories: tuple[str, ...],
    per_category: int,
    most: int,
    n_ctx: int,
    traces: Path | None,
) -> None:
    """Standardised walltime improvement of CS Drafting and speculative decoding."""
    chosen = read_prompts(prompts, categories, per_category)
    with load(model, LoadOptions(n_ctx=n_ctx)) as loaded:
        heard, target_seconds = kept(traces) or listen(loaded, chosen, most)
        if traces:
            keep(traces, heard, target_seconds)
        with load_drafter(draft, loaded) as drafter:
            longest = max(heard, key=lambda trace: len(trace.said))
            drafter_seconds = seconds_per_token(drafter, longest)
            costs = {"measured": drafter_seconds / target_seconds}
            if drafter.parameters:
                costs["parameters"] = drafter.parameters / loaded.model.parameters
            played = play_all(drafter.model, heard)
    rows = list(compare(played, heard, costs))
    table(rows)
    finish(
        {
            "target": model.name,
            "drafter": draft.name,
            "prompts": len(heard),
            "tokens": most,
            "ms_per_token": {
                "target": round(target_seconds * 1e3, 3),
                "drafter": round(drafter_seconds * 1e3, 3),
            },
            "costs": {name: round(cost, 4) for name, cost in costs.items()},
            "results": rows,
        }
    )


def compare(
    played: dict[Schedule, list[Count]],
    traces: Sequence[Trace],
    costs: dict[str, float],
) -> Iterator[dict[str, Any]]:
    """One row for each cost setting, Max-Gram and category."""
    categories = list(dict.fromkeys(trace.prompt.category for trace in traces))
    for (setting, cost), fill in itertools.product(costs.items(), (False, True)):
        alone = _best(played, cost, [s for s in played if s.is_speculative_decoding])
        cascades = [s for s in played if not s.is_speculative_decoding]
        together = _best(played, cost, [s for s in cascades if s.bigram_fill == fill])
        for category in ["all", *categories]:
            among = [
                i
                for i, trace in enumerate(traces)
                if category in ("all", trace.prompt.category)
            ]
            sd, cs = (
                improvement([played[schedule][i] for i in among], cost)
                for schedule in (alone, together)
            )
            yield {
                "costs": setting,
                "bigram_fill": fill,
                "category": category,
                "k": alone.matrix.rows[0][0],
                "K": str(together.matrix),
                "sd": round(sd, 3),
                "cs": round(cs, 3),
                "cs_over_sd": round(cs / sd, 3),
            }


if __name__ == "__main__":
    main()
