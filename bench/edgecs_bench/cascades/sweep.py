"""A cascade sweep: every way answers every prompt, and a row sums each way up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecs.core.draft import Laws
from edgecs.errors import Cancelled
from edgecs.sampling.cascade_rules import RuleName
from edgecs.sampling.chain import Rule
from edgecs.sampling.settings import Sampling
from edgecs.text.detokenizer import TextStream
from edgecs_bench.cascades.ways import LARGE, Pair, Spoken, agreement, ways
from edgecs_bench.run import humaneval
from edgecs_bench.run.journal import Journal
from edgecs_bench.suite.prompts import Prompt
from edgecs_bench.suite.suites import Suite
from edgecs_bench.text_tables import markdown

FORMAT = "edgecs-cascades/1"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Sweep:
    """What is measured.

    rules, alphas: the grid. most: tokens of an answer. code: run the code of HumanEval.
    journal: the file to resume from, or None. models: what identifies the models.
    """

    suite: Suite
    rules: Sequence[RuleName]
    alphas: Sequence[float]
    temperatures: Sequence[float]
    seed: int
    most: int
    code: bool
    journal: Path | None
    models: Mapping[str, Any]

    def header(self, names: Sequence[str]) -> dict[str, Any]:
        """The settings that identify a sweep."""
        return {
            "format": FORMAT,
            "models": dict(self.models),
            "prompts_sha256": self.suite.sha256,
            "ways": list(names),
            "temperatures": list(self.temperatures),
            "seed": self.seed,
            "most": self.most,
            "code": self.code,
        }


def run(
    sweep: Sweep,
    pair: Pair,
    rule_of: Callable[[Sampling], Rule],
    encode: Callable[[str], list[int]],
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Answers every prompt in every way; returns the result as JSON values.

    rule_of: how tokens are chosen with some sampling. encode: converts a prompt.
    Finished answers are in the journal and are not repeated. Raises Cancelled.
    """
    every = ways(pair, sweep.rules, sweep.alphas, sweep.seed)
    header = sweep.header([*every])
    journal = Journal(sweep.journal, header)
    answers: list[dict[str, Any]] = []
    for number, prompt in enumerate(sweep.suite.prompts, 1):
        ids = np.array(encode(prompt.text), dtype=np.int32)
        if ids.size + sweep.most > min(pair.target.n_ctx, pair.small.n_ctx):
            say(f"{prompt.category} {prompt.id}: skipped, it does not fit the context")
            continue
        for temperature in sweep.temperatures:
            sampling = Sampling(temperature=temperature, seed=sweep.seed)
            choose = rule_of(sampling)(ids.size).target
            assert isinstance(choose, Laws)
            for name, way in every.items():
                key = [prompt.category, prompt.id, temperature, name]
                if str(key) not in journal.done:
                    spoken = way(choose, ids, sweep.most)
                    if pair.target.cancel.is_set():  # it may be incomplete
                        raise Cancelled("stopped during the sweep: there is no result")
                    same = agreement(pair.target, choose, ids, spoken.tokens)
                    passed = _passed(sweep, pair, prompt, spoken)
                    journal.add(key, _fields(spoken, same, passed))
                answers.append(
                    {
                        "category": prompt.category,
                        "id": prompt.id,
                        "temperature": temperature,
                        "way": name,
                        **journal.done[str(key)],
                    }
                )
        say(f"{number} of {len(sweep.suite.prompts)} prompts")
    return {**header, "rows": rows(answers), "answers": answers}


def _passed(sweep: Sweep, pair: Pair, prompt: Prompt, spoken: Spoken) -> bool | None:
    """Whether the code of an answer passes its tests; None: there are none."""
    if not (sweep.code and prompt.exam):
        return None
    stream = TextStream(())
    pieces = [stream.push(pair.tokenizer.piece(token)) for token in spoken.tokens]
    text = "".join([*pieces, stream.flush()])
    return humaneval.run(humaneval.program(prompt.text, prompt.exam, text)) is None


def _fields(spoken: Spoken, same: float, passed: bool | None) -> dict[str, Any]:
    return {
        "tokens": len(spoken.tokens),
        "ttft_ms": round(1e3 * spoken.ttft, 3),
        "decode_ms": round(1e3 * spoken.decode, 3),
        "accepted": spoken.accepted,
        "rejected": spoken.rejected,
        "agreement": round(same, 4),
        "passed": passed,
    }


def rows(answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for every way and temperature.

    tokens_per_second: after the first token of each answer. speed: over that of large.
    agreement: share of the tokens that the target would have chosen itself. rejection:
    share of the verified tokens, up to the first rejected one of each round, that were
    rejected. passed, problems: of HumanEval.
    """
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for answer in answers:
        groups.setdefault((answer["temperature"], answer["way"]), []).append(answer)
    found = []
    for (temperature, way), group in groups.items():
        base = groups.get((temperature, LARGE), [])
        rate, large = _rate(group), _rate(base)
        tested = sum(a["accepted"] + a["rejected"] for a in group)
        tokens = sum(a["tokens"] for a in group)
        exams = [a["passed"] for a in group if a["passed"] is not None]
        found.append(
            {
                "temperature": temperature,
                "way": way,
                "answers": len(group),
                "tokens": tokens,
                "tokens_per_second": rate and round(rate, 3),
                "speed": round(rate / large, 4) if rate and large else None,
                "agreement": round(
                    sum(a["agreement"] * a["tokens"] for a in group) / tokens, 4
                ),
                "rejection": round(sum(a["rejected"] for a in group) / tested, 4)
                if tested
                else None,
                "passed": sum(exams) if exams else None,
                "problems": len(exams),
            }
        )
    return sorted(found, key=lambda row: row["temperature"])


def _rate(group: Sequence[Mapping[str, Any]]) -> float | None:
    """Tokens per second after the first one of each answer; None: too short."""
    tokens = sum(a["tokens"] - 1 for a in group)
    seconds = sum(a["decode_ms"] for a in group) / 1e3
    return tokens / seconds if tokens and seconds else None


def table(result: Mapping[str, Any]) -> str:
    """The rows as a Markdown table."""
    heads = ["T", "way", "tok/s", "speed", "agreement", "rejected", "pass@1"]
    lines: list[list[str]] = [heads]
    for row in result["rows"]:
        exam = f"{row['passed']}/{row['problems']}" if row["problems"] else "-"
        lines.append(
            [
                f"{row['temperature']:g}",
                row["way"],
                _shown(row["tokens_per_second"], ".2f"),
                _shown(row["speed"], ".2f"),
                _shown(row["agreement"], ".3f"),
                _shown(row["rejection"], ".3f"),
                exam,
            ]
        )
    return markdown(lines, padded=True)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
