"""Generates many answers of one target in parallel, one sequence each.

A call reads the weights once for all its tokens, so this is several times as fast as
one answer after the other. The rows may differ from those of plain decoding.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Context, Tokens
from edgecs.core.draft import Draft, LanguageModel, Request, Rows
from edgecs.engines.hidden_states import States
from edgecs.engines.llama.heads.features import LayerInputs
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.load_options import KVType, LoadOptions
from edgecs.errors import Cancelled, ModelError, OutOfMemory
from edgecs_convert.distill.samples import KEPT, Sample, best

_BATCH = 512  # tokens in one call
_LARGEST = float(np.finfo(np.float16).max)  # of a stored state
# On a CPU, attention over many sequences is twice as fast with 8-bit cells as with
# 16-bit ones, but not every head size supports them.
_KV_TYPES: tuple[KVType, ...] = ("q8_0", "f16")


class Task(NamedTuple):
    """A request for one answer."""

    number: int
    prompt: Tokens
    temperature: float


@contextmanager
def many_sequences(
    model: LlamaModel,
    cancel: threading.Event,
    *,
    sequences: int,
    room: int,
    threads: int,
) -> Iterator[LlamaLM]:
    """A scorer for parallel answers of `room` tokens, including their prompts.

    Its rows have the final hidden states. Raises OutOfMemory, ModelError.
    """
    for kind in _KV_TYPES:
        options = LoadOptions(
            n_ctx=room,
            threads=threads,
            type_k=kind,
            type_v=kind,
            n_batch=_BATCH,
            max_draft=_BATCH - 1,
            sequences=sequences,
        )
        try:
            target = LlamaLM(model, options, cancel, exact=False)
            break
        except OutOfMemory as error:
            raise OutOfMemory(
                f"{sequences} parallel answers of {room} tokens do not fit into "
                "memory: give fewer (--parallel)"
            ) from error
        except ModelError:
            if kind == _KV_TYPES[-1]:
                raise
    with closing(target):
        target.gives_states = True
        yield target


@dataclass
class _Answer:
    """An answer in progress."""

    task: Task
    context: Context
    draw: np.random.Generator
    ids: list[NDArray[np.int32]] = field(default_factory=list)
    logits: list[NDArray[np.float16]] = field(default_factory=list)
    states: list[NDArray[np.float16]] = field(default_factory=list)

    def take(self, rows: Rows) -> None:
        """Chooses the next token from the best ones of a row, best first."""
        if self.ids and rows.hidden is not None:  # of the last token
            self.states.append(rows.hidden[0].astype(np.float16))
        ids, logits = (part[0] for part in best(rows.logits[:1], KEPT))
        at = 0
        if self.task.temperature:
            noise = self.draw.gumbel(size=ids.size)
            at = int(np.argmax(logits / self.task.temperature + noise))
        self.ids.append(ids)
        self.logits.append(logits.astype(np.float16))
        self.context.append((int(ids[at]),))

    def sample(self, width: int, recorded: States | None) -> Sample:
        states = np.empty((0, width), dtype=np.float16)
        if recorded is not None:  # there is none of the last token
            rows = recorded.of(self.context, 0, len(self.context) - 1)
            states = np.clip(rows, -_LARGEST, _LARGEST).astype(np.float16)
        elif self.states:
            states = np.stack(self.states)
        return Sample(
            self.task.number,
            self.task.temperature,
            self.context.tokens.copy(),
            self.task.prompt.size,
            np.stack(self.ids),
            np.stack(self.logits),
            states,
        )


def answers(
    target: LanguageModel,
    tasks: Iterator[Task],
    most: int,
    *,
    ends: Container[int],
    width: int,
    recorded: Sequence[States] = (),
    seed: int = 1,
) -> Iterator[Sample]:
    """Yields answers of at most `most` tokens as they end.

    Prompts can have up to `longest_prompt` tokens. ends: tokens that end an answer.
    width: of a state of the target. recorded: of every sequence, states that become
    those of the samples. Raises Cancelled.
    """
    under_way: dict[int, _Answer] = {}  # by sequence
    waiting = True
    while waiting or under_way:
        if target.cancel.is_set():
            raise Cancelled("stopped while the target was writing")
        free = [i for i in range(target.sequences) if i not in under_way]
        # Prompts are computed in separate calls; several in one call cost less.
        if waiting and len(free) >= max(1, target.sequences // 8):
            begun = [
                (i, _Answer(task, Context(task.prompt), _draws(seed, task)))
                for i, task in zip(free, tasks, strict=False)
            ]
            waiting = len(begun) == len(free)
            _step(target, begun)
            under_way.update(begun)
        else:
            _step(target, [*under_way.items()])
        for i, answer in [*under_way.items()]:
            size = len(answer.context) - answer.task.prompt.size
            if answer.context.last in ends or size >= most:
                del under_way[i]
                yield answer.sample(width, recorded[i] if recorded else None)


def record_layers(target: LlamaLM, layers: Sequence[int]) -> list[States]:
    """Have a target record the inputs of layers from now on, of every sequence.

    Returns an empty list without layers; then rows have the final states.
    """
    if not layers:
        return []
    target.gives_states = False
    features = LayerInputs(target.handle, layers, target.width)
    return [target.record(features, i) for i in range(target.sequences)]


def judged(target: LanguageModel, number: int, tokens: Tokens, start: int) -> Sample:
    """Scores an answer of another model with the target.

    tokens: a prompt of `start` tokens and the answer, in one call. Raises Cancelled.
    """
    if target.cancel.is_set():
        raise Cancelled("stopped while the target was reading")
    # Nothing is chosen after the last token.
    draft = Draft.chain(tokens[start:-1], "answer")
    (rows,) = target.score([Request(Context(tokens[:start]), draft)])
    ids, logits = best(rows.logits, KEPT)
    assert rows.hidden is not None
    states = rows.hidden[1:].astype(np.float16)
    return Sample(number, 1.0, tokens, start, ids, logits.astype(np.float16), states)


def longest_prompt(room: int, most: int) -> int:
    """Maximum tokens of a prompt with room for an answer of `most` tokens."""
    return min(_BATCH, room - most)


def _draws(seed: int, task: Task) -> np.random.Generator:
    return np.random.default_rng([seed, task.number])


def _step(target: LanguageModel, group: Sequence[tuple[int, _Answer]]) -> None:
    """One token for every answer."""
    if not group:
        return
    requests = [Request(answer.context, sequence=i) for i, answer in group]
    for (_, answer), rows in zip(group, target.score(requests), strict=True):
        answer.take(rows)
