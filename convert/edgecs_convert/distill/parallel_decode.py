"""Many answers of one target at once: one sequence of cells each, all in one batch.

A batch reads the weights once for all its tokens, so data comes several times as fast
as from one answer after the other. Nothing here has to be bit-identical to anything.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Tokens
from edgecs.engines.llama import library
from edgecs.engines.llama.kernels import Nodes
from edgecs.engines.llama.model import LlamaModel
from edgecs.errors import Cancelled, DistillError, OutOfMemory
from edgecs_convert.distill.samples import KEPT, Sample, best

_BATCH = 512  # tokens in one call


class Task(NamedTuple):
    """One answer to be given."""

    number: int
    prompt: Tokens
    temperature: float


@dataclass
class _Seat:
    """An answer under way."""

    task: Task
    draw: np.random.Generator
    answer: list[int] = field(default_factory=list)
    ids: list[NDArray[np.int32]] = field(default_factory=list)
    logits: list[NDArray[np.float16]] = field(default_factory=list)
    states: list[NDArray[np.float16]] = field(default_factory=list)

    def hear(self, ids: NDArray[np.int32], logits: NDArray[np.float32]) -> int:
        """Chooses the next token from the best of a row, best first."""
        at = 0
        if self.task.temperature:
            noise = self.draw.gumbel(size=ids.size)
            at = int(np.argmax(logits / self.task.temperature + noise))
        self.ids.append(ids)
        self.logits.append(logits.astype(np.float16))
        self.answer.append(int(ids[at]))
        return self.answer[-1]

    def sample(self, width: int) -> Sample:
        tokens = np.array([*self.task.prompt, *self.answer], dtype=np.int32)
        states = np.empty((0, width), dtype=np.float16)
        if self.states:
            states = np.stack(self.states)
        return Sample(
            self.task.number,
            self.task.temperature,
            tokens,
            self.task.prompt.size,
            np.stack(self.ids),
            np.stack(self.logits),
            states,
        )


class Crowd:
    """A context with room for `seats` answers; closes.

    room: tokens of a prompt and its answer together. Raises OutOfMemory.
    """

    def __init__(
        self,
        model: LlamaModel,
        cancel: threading.Event,
        *,
        seats: int,
        room: int,
        threads: int,
        seed: int = 1,
    ) -> None:
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = seats * room, seats
        params.n_batch = params.n_ubatch = _BATCH
        params.n_threads = params.n_threads_batch = threads
        params.embeddings, params.pooling_type = True, lib.LLAMA_POOLING_TYPE_NONE
        self._nodes = Nodes(model.packed, threads) if model.packed else None
        if self._nodes:
            self._nodes.enter(params)
        library.clear_log()
        # Attention of many sequences is fastest over 8-bit cells: twice as fast on a
        # CPU as over 16-bit ones. Not every size of a head can have them.
        for kind in (lib.GGML_TYPE_Q8_0, lib.GGML_TYPE_F16):
            params.type_k = params.type_v = kind
            self._ctx = lib.llama_init_from_model(model.handle, params)
            if self._ctx is not None:
                break
        else:
            raise OutOfMemory(
                f"{seats} answers of {room} tokens at once do not fit into memory: "
                "give fewer (--parallel)"
            )
        self._memory = lib.llama_get_memory(self._ctx)
        self._batch = lib.llama_batch_init(_BATCH, 0, 1)
        self._vocab_size, self._ends = model.vocabulary.size, model.vocabulary.ends
        self.width = int(lib.llama_model_n_embd_out(model.handle))
        self._cancel = cancel
        self._room, self._seed = room, seed
        self._seats: list[_Seat | None] = [None] * seats

    def answers(self, tasks: Iterator[Task], most: int) -> Iterator[Sample]:
        """Answers of at most `most` tokens, as they end.

        A prompt has to fit `longest(most)`. Raises Cancelled.
        """
        waiting = True
        while waiting or any(self._seats):
            if self._cancel.is_set():
                raise Cancelled("stopped while the target was writing")
            free = [i for i, seat in enumerate(self._seats) if seat is None]
            # Prompts go in calls of their own; a few of them together cost less.
            if waiting and len(free) >= max(1, len(self._seats) // 8):
                waiting = self._sit(tasks, free, most)
            self._step()
            for i, seat in enumerate(self._seats):
                if seat and (seat.answer[-1] in self._ends or len(seat.answer) >= most):
                    yield seat.sample(self.width)
                    self._leave(i)

    def judged(self, number: int, tokens: Tokens, start: int) -> Sample:
        """An answer of somebody else, with what the target would have said in it.

        tokens: a prompt of `start` tokens and the answer, `longest(0)` at most.
        """
        if self._cancel.is_set():
            raise Cancelled("stopped while the target was reading")
        read = tokens.size - 1  # nothing is chosen behind the last token
        for position, token in enumerate(tokens[:-1].tolist()):
            self._put(position, token, position, 0, True)
        ids, logits = self._call(read, read)
        states = lib.llama_get_embeddings(self._ctx)
        states = np.ctypeslib.as_array(states, (read, self.width))[start:]
        lib.llama_memory_seq_rm(self._memory, 0, -1, -1)
        return Sample(
            number,
            1.0,
            tokens,
            start,
            ids[start - 1 :],
            logits[start - 1 :].astype(np.float16),
            states.astype(np.float16),
        )

    def longest(self, most: int) -> int:
        """Tokens of a prompt that leaves room for an answer of `most` tokens."""
        return min(_BATCH, self._room - most)

    def close(self) -> None:
        """Frees context and batch; may be called again."""
        if self._ctx is not None:
            lib.llama_batch_free(self._batch)
            lib.llama_free(self._ctx)
            self._ctx = None
            if self._nodes:
                self._nodes.free()

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _sit(self, tasks: Iterator[Task], free: list[int], most: int) -> bool:
        """Gives the free seats prompts to read; False when there are no more."""
        lib.llama_set_embeddings(self._ctx, False)
        group: list[tuple[int, Task]] = []
        more = True
        for i in free:
            task = next(tasks, None)
            if task is None:
                more = False
                break
            if sum(t.prompt.size for _, t in group) + task.prompt.size > _BATCH:
                self._read(group)
                group = []
            group.append((i, task))
        if group:
            self._read(group)
        lib.llama_set_embeddings(self._ctx, True)
        return more

    def _read(self, group: list[tuple[int, Task]]) -> None:
        """One call for whole prompts; chooses the first token of each answer."""
        n = 0
        for i, task in group:
            for position, token in enumerate(task.prompt.tolist()):
                self._put(n, token, position, i, position == task.prompt.size - 1)
                n += 1
        ids, logits = self._call(n, len(group))
        for row, (i, task) in enumerate(group):
            draw = np.random.default_rng([self._seed, task.number])
            seat = self._seats[i] = _Seat(task, draw)
            seat.hear(ids[row], logits[row])

    def _step(self) -> None:
        """One token for everybody who is sitting."""
        sitting = [(i, seat) for i, seat in enumerate(self._seats) if seat]
        if not sitting:
            return
        for n, (i, seat) in enumerate(sitting):
            position = seat.task.prompt.size + len(seat.answer) - 1
            self._put(n, seat.answer[-1], position, i, True)
        ids, logits = self._call(len(sitting), len(sitting))
        states = lib.llama_get_embeddings(self._ctx)
        states = np.ctypeslib.as_array(states, (len(sitting), self.width))
        for row, (_, seat) in enumerate(sitting):
            seat.states.append(states[row].astype(np.float16))
            seat.hear(ids[row], logits[row])

    def _put(self, n: int, token: int, position: int, seat: int, row: bool) -> None:
        batch = self._batch
        batch.token[n], batch.pos[n], batch.logits[n] = token, position, row
        batch.n_seq_id[n] = 1
        batch.seq_id[n][0] = seat

    def _call(self, n: int, rows: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Computes the batch; the best ids of its rows and their logits."""
        self._batch.n_tokens = n
        code = lib.llama_decode(self._ctx, self._batch)
        if code:
            if self._nodes:
                self._nodes.forget()
            said = library.logged_errors()
            why = said[-1] if said else "it gives no reason"
            raise DistillError(f"llama.cpp could not decode (code {code}): {why}")
        logits = lib.llama_get_logits(self._ctx)
        return best(np.ctypeslib.as_array(logits, (rows, self._vocab_size)), KEPT)

    def _leave(self, i: int) -> None:
        lib.llama_memory_seq_rm(self._memory, i, -1, -1)
        self._seats[i] = None
