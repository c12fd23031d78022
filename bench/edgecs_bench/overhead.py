"""Overhead of edgecs: time of a round outside the target call, and of Max-Gram.

    python -m edgecs_bench.overhead [-m MODEL.gguf]

A round is everything between one target call and the next: drafting, filling the batch,
reading the rows, verification, committing, text, statistics. The target call ends when
its rows are available. Random models of 49,152 and 151,936 tokens replace SmolLM2 and
Qwen2.5, whose vocabulary sizes they have; -m adds a real model. Half of the drafted
tokens are wrong, so both outcomes are measured. A real model is also measured with the
planner, on a text that is copied with few changes and on a question with nothing to
copy. The weights of a real model evict the caches in every call, so edgecs is slower
then; random models leave the caches warm.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter_ns

import click
import numpy as np

from edgecs.calibrate.profile import Profiles
from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.core.context import Context
from edgecs.core.draft import Drafter
from edgecs.drafters.maxgram import MaxGram
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import load
from edgecs.testing.fakes import ScriptedDrafter, write_random_gguf
from edgecs.text.chat_template import ChatTemplate
from edgecs_bench.report.summary import finish, median_us, table

WIDTH = 4  # tokens in a target call: three drafted
VOCABULARIES = (49_152, 151_936)
CONTEXT = 32_768
ANSWERS = 3  # to each question
_TEXT = (
    "The octopus is one of the cleverest animals in the sea. It has three hearts, "
    "nine brains and blue blood. Two of its hearts pump blood to the gills, and the "
    "third one pumps it to the rest of the body. When an octopus swims, the third "
    "heart stops beating, which is why octopuses would rather crawl than swim. "
)
QUESTIONS = {
    "an edit": "Correct the mistakes in this text. Write the whole corrected text, and "
    f"nothing else.\n\n{_TEXT}",
    "a question": "Who wrote Romeo and Juliet, and what happens in its five acts?",
}


class Gaps:
    """Records the time from the end of each target call to the next one."""

    def __init__(self, target: LlamaLM) -> None:
        self.spans: list[int] = []  # nanoseconds
        self._ended: int | None = None
        self._call = target.calls.call
        target.calls.call = self._timed  # type: ignore[method-assign]

    def pause(self) -> None:
        """Forgets the last call, because the next one belongs to another answer."""
        self._ended = None

    def _timed(self, first: int) -> tuple[int, int]:
        if self._ended is not None:
            self.spans.append(perf_counter_ns() - self._ended)
        done = self._call(first)
        self._ended = perf_counter_ns()
        return done


def round_overhead(name: str, path: Path, rounds: int) -> dict[str, object]:
    """Median time between two target calls of WIDTH tokens, in microseconds."""
    with load(path, LoadOptions(n_ctx=8192, max_draft=WIDTH - 1)) as loaded:
        target, prompt = loaded.target, np.arange(40, dtype=np.int32)
        with loaded.session([], 0) as session:
            plain = session.generate(prompt, max_tokens=WIDTH * rounds)
            script = [*prompt, *(token.id for token in plain)]
        size = target.vocab_size
        drafters: list[Drafter] = [
            MaxGram(),  # rarely finds a match in random text, but always searches
            ScriptedDrafter(script, wrong=0.5, vocab_size=size),
        ]
        target.reset()
        gaps = Gaps(target)
        with loaded.session(drafters, WIDTH - 1) as session:
            for _ in session.generate(prompt, max_tokens=len(script) - prompt.size):
                pass
            full_width = session.stats.rounds_by_width[WIDTH]
    return {
        "case": f"round, {name}, {size} tokens",
        "median_us": round(median(gaps.spans) / 1e3, 1),
        "times": len(gaps.spans),
        "full_width": full_width,
    }


def planned_overhead(path: Path, rounds: int) -> Iterator[dict[str, object]]:
    """Median times between two calls with the planner, in microseconds.

    drafted: the number of rounds with a draft.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        load(path, LoadOptions(n_ctx=4096)) as loaded,
    ):
        target, vocabulary = loaded.target, loaded.model.vocabulary
        known = SpeculationProfile(
            target, exact="auto", key=loaded.key(), profiles=Profiles(Path(folder))
        )
        known.prepare(loaded.seconds)
        planner = known.planner()
        template, gaps = ChatTemplate(vocabulary), Gaps(target)
        for kind, question in QUESTIONS.items():
            prompt = template.encode([{"role": "user", "content": question}])
            gaps.spans, drafted = [], 0
            for _ in range(ANSWERS):
                target.reset()
                gaps.pause()
                with loaded.session(schedule=planner, limits=known.limits) as session:
                    for _ in session.generate(prompt, max_tokens=rounds):
                        pass
                    drafted += sum(bool(r.tested) for r in session.stats.records)
            yield {
                "case": f"planned, {kind}, {path.stem}",
                "median_us": round(median(gaps.spans) / 1e3, 1),
                "times": len(gaps.spans),
                "drafted": drafted,
            }


def max_gram(kind: str, text: np.ndarray, times: int) -> Iterator[dict[str, object]]:
    """Median times of proposing ten tokens and of committing one, at CONTEXT tokens."""
    context, drafter = Context(text), MaxGram()
    drafter.propose(context, 10)
    yield {
        "case": f"propose, {kind}",
        "median_us": round(
            median_us(lambda: drafter.propose(context, 10), times=times), 2
        ),
        "times": times,
    }
    more = iter(np.resize(text[:1000], times).tolist())
    commit = median_us(lambda: drafter.commit((next(more),)), times=times)
    yield {
        "case": f"commit, {kind}",
        "median_us": round(commit, 2),
        "times": times,
    }


def texts() -> dict[str, np.ndarray]:
    """Worst-case texts for the index, and an ordinary one."""
    random = np.random.default_rng(0)
    return {
        "random text": random.integers(0, 49_152, CONTEXT),
        "periodic text": np.resize(np.arange(7), CONTEXT),
        "one token": np.zeros(CONTEXT, dtype=np.int64),
        "two tokens at random": random.integers(0, 2, CONTEXT),
    }


@click.command()
@click.option("-m", "--model", type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", default=300, show_default=True, help="Rounds to measure.")
def main(model: Path | None, rounds: int) -> None:
    """Measure the time that edgecs adds to a target call."""
    cases: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in VOCABULARIES:
            path = Path(folder) / f"{size}.gguf"
            write_random_gguf(path, vocab_size=size, n_ctx=8192)
            cases.append(round_overhead("random", path, rounds))
    if model:
        cases.append(round_overhead(model.stem, model, rounds))
        cases.extend(planned_overhead(model, rounds))
    for kind, text in texts().items():
        cases.extend(max_gram(kind, text, 10 * rounds))
    columns = ("case", "median_us", "times", "full_width", "drafted")
    table([{c: case.get(c, "") for c in columns} for case in cases])

    def worst(kind: str) -> float:
        mine = [case for case in cases if str(case["case"]).startswith(kind)]
        return max(float(str(case["median_us"])) for case in mine)

    finish(
        {
            "round_overhead_us": worst("round"),
            "planned_overhead_us": worst("planned") if model else None,
            "propose_us": worst("propose"),
            "commit_us": worst("commit"),
            "width": WIDTH,
            "context": CONTEXT,
            "cases": cases,
        }
    )


if __name__ == "__main__":
    main()
