"""Compares a drafter that goes on while the target computes with one that waits.

    python -m edgecs_bench.overlap -m TARGET.gguf --draft DRAFTER [-t N] [-td N]

Every prompt is answered without drafts, with a drafter that waits and with one that
goes on, in turn, so that drift of the machine affects them alike. All have the same
models with the same threads: without -t and -td those of `generate --overlap on`. On
one CPU, run it again with -t and -td as for a drafter that waits, because splitting the
cores has a price too. The first repetition is not counted. The last line is JSON:
tokens per second of each (the median of a prompt, then the mean of the prompts),
whether the answers are identical, and what became of the drafts made ahead.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from statistics import fmean, median
from typing import Literal

import click
import numpy as np

from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.core.draft import works_alone
from edgecs.engines.host import cpu_name
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import EdgecsError
from edgecs.runtime.loader import Loaded, LoadedDrafter, load, load_drafter
from edgecs.runtime.recipe import Recipe
from edgecs.tuning.comparison import PROMPTS
from edgecs_bench.answering import answer
from edgecs_bench.run.runner import encoder
from edgecs_bench.text_tables import aligned

PLAIN, WAITS, GOES_ON = "plain", "off", "on"
WAYS = (PLAIN, WAITS, GOES_ON)


def compared(
    loaded: Loaded, drafter: LoadedDrafter, most: int, repeats: int
) -> dict[str, object]:
    """The result of all prompts. Raises ClickException if an answer ends at once."""
    known = SpeculationProfile(loaded.target)
    known.prepare(loaded.seconds)
    ends, named = loaded.model.vocabulary.ends, [drafter.named]
    waits = known.planner(named, ends=ends)
    goes_on = known.planner(named, ends=ends, overlap="on")
    beside = goes_on.ahead
    assert beside is not None
    planners = {PLAIN: None, WAITS: waits, GOES_ON: goes_on}
    encode, identical = encoder(loaded), True
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    ahead: Counter[str] = Counter()
    for kind, text in PROMPTS.items():
        prompt = np.array(encode(text), dtype=np.int32)
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for repeat in range(repeats + 1):
            said = {}
            for way in WAYS if repeat % 2 else reversed(WAYS):
                loaded.target.reset()
                said[way] = answer(loaded, planners[way], known, prompt, most)
            answers = [one.tokens for one in said.values()]
            identical &= all(tokens == answers[0] for tokens in answers)
            if len(answers[0]) < 2:
                raise click.ClickException(f"the answer to {kind} ended at once")
            if repeat:
                ahead.update(said[GOES_ON].stats.made_ahead())
                for way, one in said.items():
                    found[way].append(one.rate)
        for way in WAYS:
            rates[way].append(median(found[way]))
        click.echo(f"{kind}: " + ", ".join(f"{w} {rates[w][-1]:.1f}" for w in WAYS))
    means = {way: fmean(rates[way]) for way in WAYS}
    return {
        "tokens_per_second": {way: round(rate, 3) for way, rate in means.items()},
        "by_prompt": {
            kind: {way: round(rates[way][at], 3) for way in WAYS}
            for at, kind in enumerate(PROMPTS)
        },
        "on_over_off": round(means[GOES_ON] / means[WAITS], 4),
        "identical": identical,
        "ahead": dict(ahead),
        "slowdown_of_calls": round(beside.slowdown, 4),
    }


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option("--draft", type=click.Path(path_type=Path), required=True)
@click.option("-t", "--threads", default=0, help="Of the target.")
@click.option("-td", "--threads-draft", "drafting", default=0)
@click.option("-ngl", "layers", default="auto", show_default=True)
@click.option("-ngld", "layers_draft", default="0", show_default=True)
@click.option("-n", "most", type=click.IntRange(2), default=128, show_default=True)
@click.option("-r", "repeats", type=click.IntRange(1), default=3, show_default=True)
def main(
    model: Path,
    draft: Path,
    threads: int,
    drafting: int,
    layers: str,
    layers_draft: str,
    most: int,
    repeats: int,
) -> None:
    """Measure whether drafts that are made ahead pay."""
    options = LoadOptions(n_ctx=2048, threads=threads, n_gpu_layers=_layers(layers))
    recipe = Recipe(
        str(model),
        options,
        drafts=(str(draft),),
        draft_options=LoadOptions(threads=drafting, n_gpu_layers=_layers(layers_draft)),
        overlap="on",
    )
    options, beside = recipe.target_options, recipe.drafter_options
    try:
        with (
            load(model, options) as loaded,
            load_drafter(draft, loaded, beside) as drafter,
        ):
            if not works_alone(drafter.model):
                raise click.ClickException(
                    f"{draft} is a head, which needs states that the target computes "
                    "in the same call: give a model of its own"
                )
            found = compared(loaded, drafter, most, repeats)
            head = {
                "model": model.stem,
                "drafter": drafter.name,
                "cpu": cpu_name(),
                "gpu_layers": loaded.model.offload.layers,
                "threads": loaded.target.threads,
                "threads_draft": beside.threads,
                "tokens": most,
                "repeats": repeats,
            }
    except EdgecsError as error:
        raise click.ClickException(str(error)) from error
    rates = found["tokens_per_second"]
    assert isinstance(rates, dict)
    rows = [["drafter", "tokens/s"], *([way, f"{rates[way]:.1f}"] for way in WAYS)]
    click.echo("\n".join(aligned(rows)))
    click.echo(json.dumps({**head, **found}))


def _layers(text: str) -> int | Literal["auto", "all"]:
    words: dict[str, Literal["auto", "all"]] = {"auto": "auto", "all": "all"}
    if text in words:
        return words[text]
    try:
        return int(text)
    except ValueError:
        raise click.UsageError(
            f"layers must be a number, auto or all, got {text!r}"
        ) from None


if __name__ == "__main__":
    main()
    sys.exit(0)
