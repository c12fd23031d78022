"""Acceptance of drafters regardless of their cost: a table, and JSON at the end.

    python -m edgecs_bench.drafters -m TARGET.gguf --draft FOLDER --suite FILE.jsonl

After every token of the target's answers each drafter writes a draft. The table shows
how often the first token, the first two and the first three match the target's: at
temperature 0 this is agreement, above it acceptance with the noise that target and
drafters share. `mag + X` takes Max-Gram's draft if three tokens or more matched, and
X's otherwise. `-cd N` gives drafters a context of N tokens, so that they read an
excerpt of a longer one: `--suite spec-bench --category rag -cd 512`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import click

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Choose, LanguageModel, Verdict, score_one
from edgecs.drafters.maxgram import MaxGram
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import Loaded, load, load_drafter
from edgecs.sampling.chain import Rule
from edgecs.sampling.settings import Sampling
from edgecs.text.chat_template import ChatTemplate
from edgecs_bench.suite.prompts import Prompt
from edgecs_bench.suite.suites import suite
from edgecs_bench.text_tables import aligned

MOST = 3  # tokens of a draft
_LONG = 3  # matched tokens from which Max-Gram is preferred
_NEVER = 1 << 30  # a match that no text has


@dataclass
class Score:
    """How often drafts were right, up to their first, second and third token."""

    right: list[int] = field(default_factory=lambda: [0] * MOST)
    asked: int = 0
    proposed: int = 0  # drafts that were not empty
    seconds: list[float] = field(default_factory=list)  # of drafted tokens

    def count(self, drafted: Sequence[int], said: Sequence[int]) -> None:
        """Compares a draft with the target's next tokens."""
        self.asked += 1
        self.proposed += bool(drafted)
        for i, (one, other) in enumerate(zip(drafted, said, strict=False)):
            if one != other:
                break
            self.right[i] += 1

    def fields(self) -> dict[str, Any]:
        """The score as plain numbers."""
        return {
            "right": [round(n / max(1, self.asked), 4) for n in self.right],
            "drafts": self.asked,
            "not_empty": round(self.proposed / max(1, self.asked), 4),
            "ms_a_token": round(median(self.seconds or [0.0]) * 1e3, 4),
        }


class Model:
    """A language model that writes its draft token by token."""

    def __init__(self, name: str, model: LanguageModel) -> None:
        self.name, self._model = name, model

    def begin(self, start: int) -> None:
        """Called when an answer begins. start: number of tokens before it."""
        if begin := getattr(self._model, "begin", None):
            begin(start)

    def draft(self, context: Context, choose: Choose, score: Score) -> list[int]:
        """A draft of MOST tokens."""
        tail: list[int] = []
        while len(tail) < MOST:
            began = time.perf_counter()
            here = context.with_tail(tail) if tail else context
            row = score_one(self._model, here).logits[0]
            tail.append(choose(row, here.tokens))
            score.seconds.append(time.perf_counter() - began)
        return tail


def answer(
    loaded: Loaded, models: Sequence[Model], ids: list[int], most: int, rule: Rule
) -> tuple[list[int], dict[str, list[list[int]]], dict[str, Score]]:
    """The target's answer, the drafts after every token, and times."""
    target, ends = loaded.target, loaded.model.vocabulary.ends
    choices = rule(len(ids))
    mag, bigram = MaxGram(), MaxGram(bigram_fill=True, min_match=_NEVER)
    drafts: dict[str, list[list[int]]] = {}
    scores: dict[str, Score] = {}

    def ask(name: str, drafted: list[int]) -> None:
        drafts.setdefault(name, []).append(drafted)

    context, said = Context(ids), list[int]()
    target.reset()
    for model in models:
        model.begin(len(ids))
    while len(said) < most and not (said and said[-1] in ends):
        rows = score_one(target, context)
        token = choices.target(rows.logits[0], context.tokens)
        for drafter in (mag, bigram):
            drafter.observe(context, NOTHING, rows, Verdict((), token))
        context.append((token,))
        said.append(token)
        copied = mag.propose(context, MOST).tokens.tolist()
        matched = mag.copy(copied).length if copied else 0
        ask("mag", copied)
        ask("bigram", bigram.propose(context, MOST).tokens.tolist())
        for model in models:
            score = scores.setdefault(model.name, Score())
            drafted = model.draft(context, choices.drafters, score)
            ask(model.name, drafted)
            ask(f"mag + {model.name}", copied if matched >= _LONG else drafted)
    return said, drafts, scores


def measure(
    loaded: Loaded,
    models: Sequence[Model],
    prompts: Sequence[Prompt],
    most: int,
    temperature: float,
    seed: int,
) -> dict[str, Score]:
    """The scores of all drafters over some prompts, by name."""
    template = ChatTemplate(loaded.model.vocabulary)
    rule = loaded.rule(Sampling(temperature, seed=seed))
    total: dict[str, Score] = {}
    for prompt in prompts:
        ids = template.encode([{"role": "user", "content": prompt.text}]).tolist()
        said, drafts, times = answer(loaded, models, ids, most, rule)
        for name, every in drafts.items():
            score = total.setdefault(name, Score())
            for at, drafted in enumerate(every, 1):
                if at + MOST <= len(said):  # enough tokens follow to compare all drafts
                    score.count(drafted, said[at : at + MOST])
        for name, score in times.items():
            total[name].seconds += score.seconds
    return total


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option("--draft", "drafts", type=click.Path(path_type=Path), multiple=True)
@click.option("--suite", "suites", multiple=True, required=True)
@click.option("--category", "categories", multiple=True)
@click.option("--per-category", default=5, show_default=True)
@click.option("-n", "--predict", default=128, show_default=True)
@click.option("-c", "--ctx-size", default=4096, show_default=True)
@click.option("-cd", "--ctx-size-draft", "ctx_draft", default=0, show_default=True)
@click.option("--temp", "temperatures", multiple=True, default=(0.0, 0.8))
@click.option("--seed", default=1, show_default=True)
def main(
    model: Path,
    drafts: tuple[Path, ...],
    suites: tuple[str, ...],
    categories: tuple[str, ...],
    per_category: int,
    predict: int,
    ctx_size: int,
    ctx_draft: int,
    temperatures: tuple[float, ...],
    seed: int,
) -> None:
    """Measure how often drafts match the tokens of a target."""
    prompts = suite(suites, categories, per_category).prompts
    short = LoadOptions(n_ctx=ctx_draft)
    with ExitStack() as closing:
        loaded = closing.enter_context(load(model, LoadOptions(n_ctx=ctx_size)))
        models, sizes = [], {}
        for path in drafts:
            drafter = closing.enter_context(load_drafter(path, loaded, short))
            models.append(Model(path.stem, drafter.model))
            files = path.iterdir() if path.is_dir() else [path]
            sizes[path.stem] = sum(file.stat().st_size for file in files)
        found = {
            str(t): measure(loaded, models, prompts, predict, t, seed)
            for t in temperatures
        }
    rows = [
        {"temperature": float(t), "drafter": name, **score.fields()}
        for t, scores in found.items()
        for name, score in scores.items()
    ]
    lines = [
        [
            f"temp {row['temperature']}",
            row["drafter"],
            " / ".join(f"{share:.3f}" for share in row["right"]),
            f"{row['ms_a_token']:.2f} ms a token, {row['drafts']} drafts",
        ]
        for row in rows
    ]
    print("\n".join(aligned(lines, words=(0, 1))))
    print(
        json.dumps(
            {
                "target": model.stem,
                "suites": [Path(name).name for name in suites],
                "prompts": len(prompts),
                "predict": predict,
                "ctx_size_draft": ctx_draft,
                "bytes": sizes,
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
