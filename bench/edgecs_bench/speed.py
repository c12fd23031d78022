"""Decode speed with the planner against plain decoding, prompt by prompt.

    python -m edgecs_bench.speed -m MODEL.gguf --prompts spec_bench.jsonl \\
        --prompts humaneval.jsonl [--prompts-of humaneval 12] [--draft SMALL.gguf] \\
        [--resume FILE.jsonl]

Every prompt is answered plainly and with speculation by the same loaded model, first
the one, then the other, and at the next prompt the other way round. Cells and drafters
are empty before each answer; what was learnt about times and acceptances stays. Only
decoding is timed: from the first token to the last.

The baseline is the faster of plain decoding and llama.cpp's own loop, greedy and
without any of edgecs, which is run on the first prompt of each category. Speed-ups are
ratios of seconds per token, so answers that fork can be compared; forks are counted.
With --resume every prompt is a line of that file when it is done, and a run that was
interrupted goes on; what it had learnt it learns again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain, zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import click
import platformdirs

from edgecs.backends.llama_model import KV_TYPES
from edgecs.chat_template import ChatTemplate
from edgecs.exactness import Exact
from edgecs.load import Loaded, LoadedDrafter, load, load_drafter
from edgecs.options import KVType, LoadOptions
from edgecs.profile import Profiles
from edgecs.sampling import Sampling
from edgecs.speculation import Speculation
from edgecs_bench.pairs import Bench, Calls, Others
from edgecs_bench.plain_llama import PlainLlama
from edgecs_bench.prompts import Prompt, read_prompts
from edgecs_bench.report import finish, table
from edgecs_bench.speedups import (
    Measured,
    Pair,
    readable,
    results,
)

BUSY = 0.05  # share of the processors' time for others that makes speeds worthless
GROUP = "mt_bench"
MT_BENCH = (
    "writing",
    "roleplay",
    "reasoning",
    "math",
    "coding",
    "extraction",
    "stem",
    "humanities",
)


def choose(
    files: Sequence[Path],
    categories: Sequence[str],
    per_category: int,
    grouped: bool,
    counts: Mapping[str, int] = MappingProxyType({}),
) -> list[Prompt]:
    """The first few prompts of every category, in the order of the files.

    counts: for categories that want more or fewer than the others. grouped: the eight
    categories of MT-bench are one, with prompts of each in turn. Raises
    click.UsageError.
    """
    groups: dict[str, dict[str, list[Prompt]]] = {}
    for prompt in read_prompts(files, (), sys.maxsize):
        kind = prompt.category
        name = GROUP if grouped and kind in MT_BENCH else kind
        few = groups.setdefault(name, {}).setdefault(kind, [])
        few.append(prompt._replace(category=name))
    named = [*categories, *counts]
    if missing := [name for name in named if name not in groups]:
        raise click.UsageError(f"no prompts of category {', '.join(missing)}")
    found: list[Prompt] = []
    for name in dict.fromkeys(categories or groups):
        turns = chain.from_iterable(zip_longest(*groups[name].values()))
        count = counts.get(name, per_category)
        found += [prompt for prompt in turns if prompt][:count]
    return found


class Journal:
    """The prompts that are done, one JSON object a line behind a header.

    path: None: nothing is kept. A line that was cut off while it was written counts as
    not there. Raises click.UsageError where the file is of a run with other options.
    """

    def __init__(self, path: Path | None, header: dict[str, Any]) -> None:
        self.done: dict[tuple[str, str], Measured] = {}
        self._path = path
        header = json.loads(json.dumps(header))
        try:
            lines = self._whole_lines()
            if not lines:
                self._write(header)
                return
            self._check(json.loads(lines[0]), header)
            for line in lines[1:]:
                measured = Measured.from_json(json.loads(line))
                self.done[measured.category, measured.id] = measured
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise click.UsageError(f"{path} cannot be resumed: {error!r}") from error

    def add(self, measured: Measured) -> None:
        """Keeps the pairs of one prompt."""
        self.done[measured.category, measured.id] = measured
        self._write(asdict(measured))

    def _whole_lines(self) -> list[bytes]:
        if self._path is None or not self._path.exists():
            return []
        data = self._path.read_bytes()
        end = data.rfind(b"\n") + 1
        os.truncate(self._path, end)
        return data[:end].splitlines()

    def _write(self, fields: dict[str, Any]) -> None:
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(fields) + "\n")

    def _check(self, found: dict[str, Any], header: dict[str, Any]) -> None:
        names = sorted(found.keys() | header.keys())
        other = [name for name in names if found.get(name) != header.get(name)]
        if other:
            raise click.UsageError(
                f"{self._path} is of a run with other options ({', '.join(other)}): "
                "give those, or another file"
            )


def measure(
    bench: Bench, loaded: Loaded, prompts: Sequence[Prompt], repeats: int, done: Journal
) -> list[Measured]:
    """The pairs of every prompt that fits the context, in the order of the prompts."""
    template = ChatTemplate(loaded.model.vocabulary)
    found: list[Measured] = []
    warm = False
    for i, prompt in enumerate(prompts):
        name = f"[{i + 1}/{len(prompts)}] {prompt.category} {prompt.id}"
        ids = template.encode([{"role": "user", "content": prompt.text}]).tolist()
        if len(ids) + bench.most > loaded.target.n_ctx:
            click.echo(f"{name}: {len(ids)} tokens are too many", err=True)
            continue
        if (prompt.category, prompt.id) not in done.done:
            if not warm:
                bench.warm_up(ids)
                warm = True
            others = Others()
            first = prompt.category not in {m.category for m in found}
            pairs = [
                bench.pair(ids, plain_first=(i + j) % 2 == 0, with_llama=first)
                for j in range(repeats)
            ]
            busy = round(others.share, 4)
            done.add(Measured(prompt.category, prompt.id, len(ids), pairs, busy))
        found.append(done.done[prompt.category, prompt.id])
        click.echo(f"{name}: {_line(found[-1].pairs)}", err=True)
    return found


def _line(pairs: Sequence[Pair]) -> str:
    """A prompt's pairs in a line, for those who wait."""
    said = [
        f"{1 / pair.plain.each:.1f} -> {1 / pair.speculative.each:.1f} tok/s, "
        f"{pair.plain.each / pair.speculative.each:.2f}"
        + (f", fork at {pair.fork['token']}" if pair.fork else "")
        if pair.counts
        else "too short"
        for pair in pairs
    ]
    return "; ".join(said)


def show(result: dict[str, Any]) -> None:
    """The table for people."""
    table([readable(row) for row in result["categories"]])
    ratio, worst = result["llama_over_plain"], result["worst"]
    llama = f"{ratio:.3f} of plain decoding" if ratio else "not measured"
    print(f"llama.cpp's own loop: {llama}; baseline: {result['baseline']}")
    if worst:
        least = f"{worst['speedup']:.2f} ({worst['category']})"
        print(f"geometric mean over categories: {result['geomean']:.2f}, worst {least}")
    print(f"planner: {result['planner_us']} us a round")
    if result["others"] > BUSY:
        share = f"{result['others']:.0%}"
        print(f"NOT A MEASUREMENT: other programs had {share} of the processors' time")


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option(
    "--prompts", type=click.Path(path_type=Path), multiple=True, required=True
)
@click.option("--category", "categories", multiple=True)
@click.option("--per-category", type=click.IntRange(1), default=6, show_default=True)
@click.option(
    "--prompts-of",
    "counts",
    type=(str, click.IntRange(1)),
    multiple=True,
    metavar="CATEGORY N",
    help="Another number of prompts for one category. May be repeated.",
)
@click.option(
    "--spec-bench-groups/--no-spec-bench-groups",
    "grouped",
    default=True,
    help="Take the eight categories of MT-bench as one, mt_bench.",
)
@click.option(
    "-n", "--predict", "most", type=click.IntRange(2), default=192, show_default=True
)
@click.option("--draft", "drafts", type=click.Path(path_type=Path), multiple=True)
@click.option("--exact", type=click.Choice(get_args(Exact)), default="auto")
@click.option("--temp", "temperature", default=0.0, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("-c", "--ctx-size", "n_ctx", default=4096, show_default=True)
@click.option("-ctk", "type_k", type=click.Choice(get_args(KVType)), default="f16")
@click.option("-ctv", "type_v", type=click.Choice(get_args(KVType)), default="f16")
@click.option("-t", "--threads", default=0, help="0: one for each physical core.")
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--profile", is_flag=True, help="Start from what this user's runs have taught."
)
@click.option("--resume", type=click.Path(path_type=Path, dir_okay=False))
def main(
    model: Path, drafts: tuple[Path, ...], resume: Path | None, **options: Any
) -> None:
    """Measure what speculation brings on this machine."""
    chosen = choose(
        options["prompts"],
        options["categories"],
        options["per_category"],
        options["grouped"],
        dict(options["counts"]),
    )
    shape = {name: options[name] for name in ("n_ctx", "threads", "type_k", "type_v")}
    with ExitStack() as closing:
        loaded = closing.enter_context(load(model, LoadOptions(**shape)))
        shape["n_ctx"] = 0  # a drafter has the target's
        drafters = [
            closing.enter_context(load_drafter(path, loaded, LoadOptions(**shape)))
            for path in drafts
        ]
        if not loaded.target.rewindable:
            raise click.UsageError(f"{model.name} cannot forget tokens, so no drafts")
        header = {**options, **_identity(loaded, drafters, chosen)}
        header["prompts"] = [path.name for path in options["prompts"]]
        journal = Journal(resume, header)
        root = Path(platformdirs.user_cache_dir("edgecs")) / "profiles"
        if not options["profile"]:
            root = Path(closing.enter_context(tempfile.TemporaryDirectory()))
        speculation = Speculation(
            loaded.target,
            exact=options["exact"],
            key=loaded.key(),
            profiles=Profiles(root),
        )
        speculation.prepare(loaded.seconds, lambda text: click.echo(text, err=True))
        bench = Bench(
            loaded,
            drafters,
            speculation,
            _llama(loaded, closing),
            Calls([drafter.model for drafter in drafters]),
            loaded.rule(_sampling(options["temperature"], options["seed"])),
            options["most"],
        )
        measured = measure(bench, loaded, chosen, options["repeats"], journal)
    if not measured:
        raise click.UsageError("no prompt fits the context: give a larger one (-c)")
    result = results(measured)
    show(result)
    skipped = len(chosen) - len(measured)
    finish({"model": model.name, "options": header, "skipped": skipped, **result})


def _identity(
    loaded: Loaded, drafters: Sequence[LoadedDrafter], prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """What a run is about besides its options."""
    data = json.dumps(prompts).encode()
    return {
        "target": vars(loaded.key()),
        "drafters": {drafter.name: drafter.fingerprint for drafter in drafters},
        "prompts_sha256": hashlib.sha256(data).hexdigest(),
    }


def _llama(loaded: Loaded, closing: ExitStack) -> PlainLlama | None:
    """llama.cpp's own loop over the same weights; None: no memory for its cells."""
    options, n_ctx = loaded.options, loaded.target.n_ctx
    if not loaded.model.kv_fits(n_ctx, options):
        return None
    kinds = KV_TYPES[options.type_k], KV_TYPES[options.type_v]
    plain = PlainLlama(loaded.model.handle, n_ctx, loaded.target.threads, *kinds)
    return closing.enter_context(plain)


def _sampling(temperature: float, seed: int) -> Sampling:
    if not temperature:
        return Sampling()
    return Sampling(temperature, top_k=40, top_p=0.95, min_p=0.05, seed=seed)


if __name__ == "__main__":
    main()
