"""A cascade sweep: the quality of every way on all prompts, its speed on a few.

Quality and counts come from trees of answers, which need every row once
(`cascades.walk`). Speed comes from runs of every way by itself. A row sums each way up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from edgecs.core.context import Tokens
from edgecs.core.draft import LanguageModel, Laws
from edgecs.errors import Cancelled
from edgecs.sampling.cascade_rules import RuleName
from edgecs.sampling.chain import Rule
from edgecs.sampling.settings import Sampling
from edgecs.text.detokenizer import TextStream, Tokenizer
from edgecs_bench.cascades.rows import rows
from edgecs_bench.cascades.walk import Walked, Walker
from edgecs_bench.cascades.ways import Over, Pair, Question, mixtures, never, ways
from edgecs_bench.run import humaneval
from edgecs_bench.run.journal import Journal
from edgecs_bench.suite.prompts import Exam, Prompt
from edgecs_bench.suite.suites import Suite

FORMAT = "edgecs-cascades/2"
SPEED = "speed"  # the first word of a journal key
_FENCE = b"`"
# chosen: long enough for a program that has a tenth of a core.
_PATIENCE = 80  # seconds of a program

Say = Callable[[str], None]
Models = tuple[LanguageModel, LanguageModel]
Wide = Callable[[int], AbstractContextManager[Models]]
"""Opens the target and the small model for trees; given the tokens of a context."""


@dataclass(frozen=True)
class Sweep:
    """What is measured.

    rules, alphas: the grid. most: tokens of an answer. code: run the code of HumanEval;
    its answers end with that code. quality, speed: compute what the journal lacks
    of it. timed: number of prompts for the speed. timed_most: tokens of their answers.
    seconds: no prompt is begun after that; None: no limit. journal: the file
    to resume from, or None. models: what identifies the models. machine: what only
    times depend on.
    """

    suite: Suite
    rules: Sequence[RuleName]
    alphas: Sequence[float]
    temperatures: Sequence[float]
    seed: int
    most: int
    code: bool
    quality: bool
    speed: bool
    timed: int
    timed_most: int
    seconds: float | None
    journal: Path | None
    models: Mapping[str, Any]
    machine: Mapping[str, Any]

    def header(self, names: Sequence[str], drafted: int) -> dict[str, Any]:
        """What all parts of a journal share; it may have other prompts as well."""
        return {
            "format": FORMAT,
            "models": dict(self.models),
            "ways": list(names),
            "drafted": drafted,
            "seed": self.seed,
            "code": self.code,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What else identifies a result."""
        return {
            "prompts_sha256": self.suite.sha256,
            "prompts": len(self.suite.prompts),
            "temperatures": list(self.temperatures),
            "most": self.most,
            "machine": dict(self.machine),
        }


class Asked(NamedTuple):
    """A prompt at a temperature."""

    prompt: Prompt
    temperature: float
    question: Question

    @property
    def key(self) -> list[Any]:
        """Its name in the journal."""
        prompt, question = self.prompt, self.question
        told = _digest(question.prompt.tolist())
        return [prompt.category, prompt.id, self.temperature, told, question.most]

    @property
    def fields(self) -> dict[str, Any]:
        """Its name in the result."""
        return {
            "category": self.prompt.category,
            "id": self.prompt.id,
            "temperature": self.temperature,
        }


def run(
    sweep: Sweep,
    pair: Pair,
    rule_of: Callable[[Sampling], Rule],
    encode: Callable[[str], list[int]],
    say: Say = lambda text: None,
    wide: Wide | None = None,
) -> dict[str, Any]:
    """Answers every prompt in every way; returns the result as JSON values.

    rule_of: how tokens are chosen with some sampling. encode: converts a prompt. wide:
    opens the models for trees; None: those of the pair. Finished prompts are in the
    journal and are not repeated. Raises Cancelled.
    """
    of_pair = nullcontext((pair.target, pair.small))
    measured = _Measured(sweep, pair, say, wide or (lambda room: of_pair))
    asked = [*_asked(sweep, pair, rule_of, encode, say)]
    if sweep.quality:
        measured.compute_trees(asked)
    if sweep.speed:
        measured.take_times(asked)
    answers, timed = measured.answers(asked), measured.times(asked)
    return {
        **measured.header,
        **sweep.settings,
        "rows": rows(answers, timed),
        "answers": answers,
        "timed": timed,
    }


def _asked(
    sweep: Sweep,
    pair: Pair,
    rule_of: Callable[[Sampling], Rule],
    encode: Callable[[str], list[int]],
    say: Say,
) -> Iterator[Asked]:
    """All prompts at the first temperature, then at the next one."""
    prompts: list[tuple[Prompt, Tokens]] = []
    for prompt in sweep.suite.prompts:
        ids = np.array(encode(prompt.text), dtype=np.int32)
        if ids.size + sweep.most > min(pair.target.n_ctx, pair.small.n_ctx):
            say(f"{prompt.category} {prompt.id}: skipped, it does not fit the context")
        else:
            prompts.append((prompt, ids))
    for temperature in sweep.temperatures:
        sampling = Sampling(temperature=temperature, seed=sweep.seed)
        for prompt, ids in prompts:
            choose = rule_of(sampling)(ids.size).target
            assert isinstance(choose, Laws)
            over: Over = never
            if sweep.code and prompt.exam:
                over = _code_is_over(prompt.exam, pair.tokenizer)
            yield Asked(prompt, temperature, Question(choose, ids, sweep.most, over))


def _code_is_over(exam: Exam, tokenizer: Tokenizer) -> Over:
    """Whether the code that is tested is complete: the rest does not change pass@1."""

    def over(tokens: Sequence[int]) -> bool:
        if _FENCE not in tokenizer.piece(tokens[-1]):  # most tokens
            return False
        return humaneval.is_complete(exam, _text(tokenizer, tokens))

    return over


def _text(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    stream = TextStream(())
    pieces = [stream.push(tokenizer.piece(token)) for token in tokens]
    return "".join([*pieces, stream.flush()])


class _Measured:
    """The finished parts of a sweep, in its journal."""

    def __init__(self, sweep: Sweep, pair: Pair, say: Say, wide: Wide) -> None:
        self._sweep, self._pair, self._say, self._wide = sweep, pair, say, wide
        self._mixtures = mixtures(sweep.rules, sweep.alphas, sweep.seed)
        self.header = sweep.header([*self._mixtures], pair.drafted)
        self._journal = Journal(sweep.journal, self.header)
        self._tried: dict[str, bool] = {}  # by program
        self._began = monotonic()

    def compute_trees(self, asked: Sequence[Asked]) -> None:
        """Walks the trees that the journal has not, until the time is over."""
        left = [one for one in asked if str(one.key) not in self._journal.done]
        if not left:
            return
        longest = max(one.question.prompt.size for one in left)
        ends, done = self._pair.tokenizer.ends, len(asked) - len(left)
        with self._wide(longest + self._sweep.most) as models:
            walker = Walker(*models, self._mixtures, ends)
            questions = (one.question for one in takewhile(self._in_time, left))
            for walked in walker.walk(questions):
                done += 1
                one = left[walked.number]
                self._journal.add(one.key, self._fields(one, walked))
                self._say(
                    f"{one.prompt.category} {one.prompt.id}, temperature "
                    f"{one.temperature:g}: {walked.nodes} rows, {done} of {len(asked)}"
                )

    def _in_time(self, one: Asked) -> bool:
        """Whether another prompt may be begun."""
        seconds = self._sweep.seconds
        if seconds is None or monotonic() - self._began < seconds:
            return True
        self._say("the time is over: no further prompt is begun")
        return False

    def _fields(self, one: Asked, walked: Walked) -> dict[str, Any]:
        """What the journal keeps of a tree."""
        said = dict[str, dict[str, Any]]()
        drafted, ends = self._pair.drafted, self._pair.tokenizer.ends
        for way, mixture in self._mixtures.items():
            answer = walked.answers[way]
            counts = answer.counts(way, mixture, drafted, self._sweep.most, ends)
            said[way] = {
                "tokens": len(answer.tokens),
                "text": _digest(answer.tokens),
                **counts._asdict(),
                "agreement": round(answer.agreement, 4),
                "passed": self._passed(one.prompt, answer.tokens),
            }
        return {"nodes": walked.nodes, "ways": said}

    def _passed(self, prompt: Prompt, tokens: Sequence[int]) -> bool | None:
        """Whether the code of an answer passes its tests; None: there are none."""
        if not (self._sweep.code and prompt.exam):
            return None
        text = _text(self._pair.tokenizer, tokens)
        program = humaneval.program(prompt.text, prompt.exam, text)
        if program not in self._tried:
            self._tried[program] = _passes(program)
        return self._tried[program]

    def take_times(self, asked: Sequence[Asked]) -> None:
        """Runs every way by itself on a few prompts, in alternating order."""
        sweep = self._sweep
        every = [*ways(self._pair, sweep.rules, sweep.alphas, sweep.seed).items()]
        some = takewhile(self._in_time, self._chosen(asked))
        for at, one in enumerate(some, 1):
            every.reverse()
            for way, speak in every:
                key = self._speed_key(one, way)
                if str(key) in self._journal.done:
                    continue
                spoken = speak(one.question)
                if self._pair.target.cancel.is_set():  # it may be incomplete
                    raise Cancelled("the sweep was stopped before it had a result")
                times = {
                    "tokens": len(spoken.tokens),
                    "text": _digest(spoken.tokens),
                    **spoken.counts._asdict(),
                    "ttft_ms": round(1e3 * spoken.ttft, 3),
                    "decode_ms": round(1e3 * spoken.decode, 3),
                }
                self._journal.add(key, times)
            self._say(f"speed on {one.prompt.category} {one.prompt.id}: {at} done")

    def _speed_key(self, one: Asked, way: str) -> list[Any]:
        return [SPEED, [*self._sweep.machine.values()], *one.key, way]

    def _chosen(self, asked: Sequence[Asked]) -> Iterator[Asked]:
        """The prompts for the speed, spread evenly over those of each temperature."""
        most = min(self._sweep.timed_most, self._sweep.most)
        for temperature in self._sweep.temperatures:
            some = [one for one in asked if one.temperature == temperature]
            count = min(self._sweep.timed, len(some))
            for one in (some[i * len(some) // count] for i in range(count)):
                yield one._replace(question=one.question._replace(most=most))

    def answers(self, asked: Sequence[Asked]) -> list[dict[str, Any]]:
        """The finished answers, those of a prompt for all ways."""
        return [
            {**one.fields, "way": way, **said}
            for one in asked
            if (known := self._journal.done.get(str(one.key)))
            for way, said in known["ways"].items()
        ]

    def times(self, asked: Sequence[Asked]) -> list[dict[str, Any]]:
        """The runs for the speed, of prompts where those of all ways are finished."""
        found = []
        for one in self._chosen(asked):
            keys = {way: str(self._speed_key(one, way)) for way in self._mixtures}
            if all(key in self._journal.done for key in keys.values()):
                found += [
                    {**one.fields, "way": way, **self._journal.done[key]}
                    for way, key in keys.items()
                ]
        return found


def _passes(program: str) -> bool:
    """Whether a program passes; on a busy machine it is given more time."""
    seconds = humaneval.SECONDS
    reason = humaneval.run(program)
    while reason and reason.startswith(humaneval.LATE) and seconds < _PATIENCE:
        seconds *= 2
        reason = humaneval.run(program, seconds)
    return reason is None


def _digest(tokens: Sequence[int]) -> str:
    """Tells answers apart."""
    return hashlib.sha256(np.array(tokens, "<i4").tobytes()).hexdigest()[:12]
