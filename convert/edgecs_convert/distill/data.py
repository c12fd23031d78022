"""The first stage: the target generates the training data."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain, cycle
from pathlib import Path

from edgecs.core.context import Tokens
from edgecs.core.files import write_whole
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.model import LlamaModel
from edgecs.errors import ConfigError, DistillError
from edgecs.text.chat_template import ChatTemplate
from edgecs_convert.distill.parallel_decode import (
    Task,
    answers,
    longest_prompt,
    many_sequences,
    record_layers,
)
from edgecs_convert.distill.samples import Sample, last_needed, sizes, write_shard
from edgecs_convert.distill.topics import Half, questions

_SHARD = 64  # answers in a file
_GREEDY = 2  # every second answer is greedy
_PROMPT = 256  # maximum tokens of a prompt
_PATIENCE = 1000  # prompts in a row that are too long
NOTED = "samples.json"


@dataclass(frozen=True)
class Wanted:
    """Settings of the data. tokens: of all answers. most: of one answer."""

    tokens: int
    half: Half = "seen"
    most: int = 256
    temperature: float = 0.8  # of every second answer; the others are greedy
    parallel: int = 32  # answers in parallel
    prompts: Path | None = None  # a file of prompts instead of the topics
    seed: int = 1
    layers: tuple[int, ...] = ()  # whose inputs are the states; (): the final states
    states: bool = True  # False: samples have none, which takes less time and room


Tell = Callable[[str], None]
Answerer = Callable[[Iterator[Task]], Iterator[Sample]]
"""Answers tasks, in any order; an answer of one token is of no use and counts too."""
Opened = AbstractContextManager[Answerer]


class Answered:
    """Which questions have answers, and whether they are enough.

    They are enough if the answers to the first questions, none of them missing, have as
    many tokens as wanted. So the data do not depend on who wrote an answer, or when.
    """

    def __init__(self, sizes: Mapping[int, int], tokens: int) -> None:
        self._sizes, self._wanted = dict(sizes), tokens
        self._begun: set[int] = set()
        self._asked = -1  # the last question that was looked at
        self.tokens = sum(sizes.values())

    def ended(self, number: int, size: int) -> None:
        """Notes an answer; size: its tokens, 0: of no use."""
        self._begun.discard(number)
        self.tokens += size - self._sizes.get(number, 0)
        self._sizes[number] = size

    def asking(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """The tasks, until those that were given must be enough."""
        for task in tasks:
            self._asked, last = task.number, self._last()
            if last is not None and task.number > last:
                return
            self._begun.add(task.number)
            yield task

    def enough(self) -> bool:
        """Whether no answer to a question before the last one needed is missing."""
        last = self._last()
        if last is None or self._asked < last:
            return False
        return all(number > last for number in self._begun)

    def _last(self) -> int | None:
        if self.tokens < self._wanted:
            return None
        return last_needed(self._sizes, self._wanted)


def write_samples(
    model: LlamaModel,
    folder: Path,
    wanted: Wanted,
    cancel: threading.Event,
    tell: Tell,
    *,
    threads: int,
    opened: Callable[[Wanted], Opened] | None = None,
) -> int:
    """Fills a folder with samples; returns the tokens of the answers in it.

    Existing samples count. opened: who answers, by default the model itself. Raises
    ConfigError for samples of another kind, DistillError, Cancelled; the samples
    written so far are kept.
    """
    _check_same(folder, model, wanted)
    done = sizes(folder)
    answered = Answered(done, wanted.tokens)
    longest = longest_prompt(room_of(wanted), wanted.most)
    tasks = answered.asking(_tasks(model, wanted, done, longest))
    first = next(tasks, None)
    if first is None:
        return answered.tokens
    who = opened(wanted) if opened else _alone(model, wanted, cancel, threads)
    began, before = time.monotonic(), answered.tokens
    few: list[Sample] = []
    without: list[int] = []
    kept = answered.tokens
    try:
        with who as answerer:
            for sample in answerer(chain((first,), tasks)):
                # One token has no token with a successor.
                size = sample.size if sample.size > 1 else 0
                answered.ended(sample.number, size)
                if size:
                    few.append(sample)
                else:
                    without.append(sample.number)
                if len(few) >= _SHARD:
                    kept += _keep(folder, few, without)
                    speed = (kept - before) / (time.monotonic() - began)
                    left = max(0.0, (wanted.tokens - kept) / speed)
                    tell(
                        f"writing: {kept:,} of {wanted.tokens:,} tokens, {speed:.0f} "
                        f"per second, {left / 60:.0f} min left"
                    )
                if answered.enough():
                    break
    finally:
        if few:
            kept += _keep(folder, few, without)
    return kept


def room_of(wanted: Wanted) -> int:
    """Maximum tokens of a prompt and its answer."""
    return _PROMPT + wanted.most


@contextmanager
def _alone(
    model: LlamaModel, wanted: Wanted, cancel: threading.Event, threads: int
) -> Iterator[Answerer]:
    """The model answers in this process."""
    with many_sequences(
        model, cancel, sequences=wanted.parallel, room=room_of(wanted), threads=threads
    ) as target:
        yield answerer_of(target, model, wanted)


def answerer_of(target: LlamaLM, model: LlamaModel, wanted: Wanted) -> Answerer:
    """Answers of a scorer with many sequences."""
    target.gives_states = wanted.states
    recorded = record_layers(target, wanted.layers)
    return lambda tasks: answers(
        target,
        tasks,
        wanted.most,
        ends=model.vocabulary.ends,
        width=target.width,
        recorded=recorded,
        seed=wanted.seed,
    )


def _keep(folder: Path, few: list[Sample], without: list[int]) -> int:
    write_shard(folder, few, without)
    tokens = sum(sample.size for sample in few)
    few.clear()
    without.clear()
    return tokens


def _check_same(folder: Path, model: LlamaModel, wanted: Wanted) -> None:
    """Refuses a folder with samples of another target or other settings."""
    noted = {
        "target": model.path.name,
        "half": wanted.half,
        "most": wanted.most,
        "temperature": wanted.temperature,
        "prompts": wanted.prompts.name if wanted.prompts else None,
        "seed": wanted.seed,
        **({"layers": [*wanted.layers]} if wanted.layers else {}),
        **({} if wanted.states else {"states": False}),
    }
    path = folder / NOTED
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_whole(path, json.dumps(noted).encode())
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DistillError(f"{path} cannot be read ({error}): remove it") from error
    if not isinstance(there, dict):
        raise DistillError(f"{path} is not a list of settings: remove it")
    if there != noted:
        other = next(k for k in {**noted, **there} if there.get(k) != noted.get(k))
        raise ConfigError(
            f"{folder} has samples with {other} {there.get(other)!r}, not "
            f"{noted.get(other)!r}: give another folder, or remove it"
        )


def _tasks(
    model: LlamaModel, wanted: Wanted, done: Container[int], longest: int
) -> Iterator[Task]:
    """Prompts as tokens, without those that were answered or are too long.

    The topics give an endless sequence; a file of prompts is repeated, because sampled
    answers differ.
    """
    template = ChatTemplate(model.vocabulary)
    texts: Iterable[str]
    if wanted.prompts:
        read = _read_prompts(wanted.prompts)
        fits = [t for t in read if _encode(template, t).size <= longest]
        if not fits:
            raise ConfigError(
                f"no prompt in {wanted.prompts} leaves room for {wanted.most} tokens "
                f"of an answer: prompts can have at most {longest} tokens"
            )
        texts = cycle(fits)
    else:
        texts = (q.text for q in questions(wanted.half, wanted.seed))
    refused = 0
    for number, text in enumerate(texts):
        if number in done:
            continue
        prompt = _encode(template, text)
        refused = 0 if prompt.size <= longest else refused + 1
        if refused > _PATIENCE:
            raise ConfigError(
                f"no prompt has at most {longest} tokens of this model, so none leaves "
                "room for an answer: give your own prompts (--prompts)"
            )
        if not refused:
            sampled = number % _GREEDY
            yield Task(number, prompt, wanted.temperature if sampled else 0.0)


def _encode(template: ChatTemplate, text: str) -> Tokens:
    return template.encode([{"role": "user", "content": text}])


def _read_prompts(path: Path) -> list[str]:
    """Reads one prompt, or one JSON object with prompt, text or turns, per line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as prompts: {error}") from error
    found = [_prompt(line) for line in lines if line.strip()]
    if not found:
        raise ConfigError(f"there are no prompts in {path}: give one per line")
    return found


def _prompt(line: str) -> str:
    try:
        fields = json.loads(line)
        if isinstance(fields, dict):
            turns = fields.get("turns") or [fields.get("prompt") or fields["text"]]
            return str(turns[0])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        pass
    return line
