"""The first stage: the target generates the training data."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from edgecs.core.context import Tokens
from edgecs.core.files import write_whole
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
from edgecs_convert.distill.samples import Sample, numbers, write_shard
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


def write_samples(
    model: LlamaModel,
    folder: Path,
    wanted: Wanted,
    cancel: threading.Event,
    tell: Tell,
    *,
    threads: int,
) -> int:
    """Fills a folder with samples; returns the tokens of the answers in it.

    Existing samples count. Raises ConfigError for samples of another kind,
    DistillError, Cancelled; the samples written so far are kept.
    """
    _check_same(folder, model, wanted)
    done, tokens = numbers(folder)
    if tokens >= wanted.tokens:
        return tokens
    room = _PROMPT + wanted.most
    began, before = time.monotonic(), tokens
    few: list[Sample] = []
    with many_sequences(
        model, cancel, sequences=wanted.parallel, room=room, threads=threads
    ) as target:
        target.gives_states = wanted.states
        tasks = _tasks(model, wanted, done, longest_prompt(room, wanted.most))
        samples = answers(
            target,
            tasks,
            wanted.most,
            ends=model.vocabulary.ends,
            width=target.width,
            recorded=record_layers(target, wanted.layers),
            seed=wanted.seed,
        )
        try:
            for sample in samples:
                if sample.size < 2:
                    continue  # it has no token with a successor
                few.append(sample)
                if len(few) < _SHARD:
                    continue
                tokens += _keep(folder, few)
                speed = (tokens - before) / (time.monotonic() - began)
                left = max(0.0, (wanted.tokens - tokens) / speed)
                tell(
                    f"writing: {tokens:,} of {wanted.tokens:,} tokens, {speed:.0f} per "
                    f"second, {left / 60:.0f} min left"
                )
                if tokens >= wanted.tokens:
                    return tokens
        finally:
            if few:
                tokens += _keep(folder, few)
    return tokens


def _keep(folder: Path, few: list[Sample]) -> int:
    write_shard(folder, few)
    tokens = sum(sample.size for sample in few)
    few.clear()
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
    model: LlamaModel, wanted: Wanted, done: set[int], longest: int
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
