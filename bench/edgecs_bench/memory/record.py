"""Records the greedy answers of a target to the scenarios.

    python -m edgecs_bench.memory.record -m TARGET.gguf -o FILE.jsonl.gz

Every answer is part of the next prompt of its conversation. The file is written after
each answer, and an interrupted recording resumes where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from edgecs.core.draft import Choose
from edgecs.core.logits import best_ids
from edgecs.drafters.recycling_table import RANKS
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import Loaded, load
from edgecs.sampling.chain import Choices, Rule
from edgecs.sampling.settings import Sampling
from edgecs.session.session import Session
from edgecs.text.chat_template import ChatTemplate
from edgecs_bench.memory.scenarios import (
    Place,
    Scenario,
    answer_text,
    chosen,
    read_scenarios,
)
from edgecs_bench.memory.traces import Answer, read_answers, write_answers


class _Ranks:
    """A choice that records the best ids of each row."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self.confidence, self.margin = choose.confidence, choose.margin
        self.keeps, self.alternatives = choose.keeps, choose.alternatives
        self.seen: list[list[int]] = []

    def __call__(self, row: NDArray[np.float32], tokens: NDArray[np.int32]) -> int:
        self.seen.append(best_ids(row, RANKS))
        return self._choose(row, tokens)


class Recorder:
    """Answers scenarios, and keeps what was answered in a file."""

    def __init__(self, loaded: Loaded, session: Session, output: Path) -> None:
        self._loaded, self._session, self._output = loaded, session, output
        self._template = ChatTemplate(loaded.model.vocabulary)
        self._target = loaded.model.path.stem
        self.answers: list[Answer] = []
        if output.exists():
            target, self.answers = read_answers(output)
            if target != self._target:
                raise click.UsageError(
                    f"{output} was recorded with {target}, not with {self._target}: "
                    "give another file"
                )
        self._known = {(a.scenario, a.place): a for a in self.answers}

    def record(self, scenario: Scenario) -> None:
        """Records the answers that the file lacks."""
        for s, c, questions in scenario.conversations():
            messages: list[dict[str, str]] = []
            for turn, question in enumerate(questions):
                messages.append({"role": "user", "content": question})
                place = Place(s, c, turn)
                known = self._known.get(((scenario.category, scenario.name), place))
                answer = known or self._answer(scenario, place, messages)
                text = answer_text(self._loaded.model.vocabulary, answer.output)
                messages.append({"role": "assistant", "content": text})

    def _answer(
        self, scenario: Scenario, place: Place, messages: Sequence[dict[str, str]]
    ) -> Answer:
        ids = self._template.encode(messages).tolist()
        choices = self._session.rule(len(ids))
        ranks = _Ranks(choices.target)
        rule: Rule = lambda start: Choices(ranks, choices.drafters)  # noqa: E731
        tokens = self._session.generate(ids, max_tokens=scenario.most, rule=rule)
        output = [token.id for token in tokens]
        head = scenario.category, scenario.name, scenario.tuning
        answer = Answer(*head, place, ids, output, ranks.seen[: len(output)])
        self.answers.append(answer)
        write_answers(self._output, self._target, self.answers)
        click.echo(
            f"{'/'.join(map(str, (*head[:2], *place)))}: {len(output)}", err=True
        )
        return answer


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option("--scenario", "names", multiple=True, help="Only these, in this order.")
@click.option("-c", "--ctx-size", "n_ctx", default=4096, show_default=True)
@click.option("-t", "--threads", default=0, show_default="one per core")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(
    model: Path, names: tuple[str, ...], n_ctx: int, threads: int, output: Path
) -> None:
    """Record the answers of a target to the scenarios."""
    scenarios = chosen(read_scenarios(), names)
    options = LoadOptions(n_ctx=n_ctx, threads=threads)
    with (
        load(model, options) as loaded,
        loaded.session([], 0, rule=loaded.rule(Sampling())) as session,
    ):
        recorder = Recorder(loaded, session, output)
        for scenario in scenarios:
            recorder.record(scenario)
    tokens = sum(len(answer.output) for answer in recorder.answers)
    click.echo(f"{output}: {len(recorder.answers)} answers, {tokens} tokens")


if __name__ == "__main__":
    main()
    sys.exit(0)
