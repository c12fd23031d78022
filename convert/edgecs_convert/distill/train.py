"""Trains a drafter on the answers of its target.

The complete state of a run is in one checkpoint, which is replaced atomically. With the
same samples, recipe and machine an interrupted run ends with the same weights as an
uninterrupted one.
"""

from __future__ import annotations

import math
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from edgecs.core.files import replacing, sweep
from edgecs.engines.llama.library import has_amx
from edgecs.engines.onnx.thread import Aside
from edgecs.errors import Cancelled, DistillError
from edgecs_convert.distill.recipe import Recipe
from edgecs_convert.distill.texts import Batch, Vocabulary, Window, batches

_SAVE = 60.0  # seconds between two checkpoints
_BROKEN = (OSError, RuntimeError, KeyError, EOFError, ValueError)


class Student(Protocol):
    """A drafter in PyTorch, a module with its own loss."""

    def described(self) -> dict[str, Any]:
        """Kind and sizes, which a checkpoint must match."""

    def loss(self, batch: Batch[Tensor], recipe: Recipe) -> Tensor:
        """The loss of one batch, a scalar."""


Tell = Callable[[str], None]


def device() -> str:
    """The device of PyTorch: CUDA, Apple's GPU, or the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def halves(on: str) -> bool:
    """Whether products of bfloat16 are fast on a device.

    Without instructions for them PyTorch takes 250 times as long as with float32 (a
    product of 600 x 576 x 12,288 on two cores of a Zen 3: 15.6 s and 0.064 s).
    """
    if on == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return on != "mps"


class Trainer:
    """A resumable training of a drafter.

    student: a module that is a `Student`. every: training windows. path: of the
    checkpoint; a checkpoint of another recipe is refused.
    """

    def __init__(
        self,
        student: Any,
        every: Sequence[Window],
        vocabulary: Vocabulary,
        recipe: Recipe,
        path: Path,
        *,
        on: str | None = None,
    ) -> None:
        self._on = on or device()
        self.student, self.recipe = student.to(self._on), recipe
        self.vocabulary = vocabulary
        self._every, self._path = every, path
        self._a_round = max(1, math.ceil(len(every) / recipe.texts))
        self.total = max(1, round(self._a_round * recipe.epochs))
        self.done = 0  # batches
        self.seconds = 0.0  # of training, over all runs
        weights = [*self.student.parameters()]
        matrices = [w for w in weights if w.ndim == 2]
        vectors = [w for w in weights if w.ndim == 1]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": recipe.decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=recipe.rate,
            betas=(0.9, 0.95),
        )
        sweep(path.parent, path.name)  # a finished checkpoint is not written again
        if path.exists():
            self._load()

    def begin_from(self, path: Path) -> None:
        """Copies the weights of another training's checkpoint, if this one is new.

        Raises DistillError if there is none, or if it is of another drafter.
        """
        if self.done:
            return
        if not path.exists():
            raise DistillError(f"there is no checkpoint {path}: train a drafter first")
        state = self._read(path)
        if state["made"]["student"] != self.student.described():
            raise DistillError(f"{path} is of another drafter: give the same --rows")
        self.student.load_state_dict(state["student"])

    def start(self, begin: Callable[[], None]) -> None:
        """Calls a function that sets the first weights, if this training is new."""
        if self.done:
            return
        with closing(Aside(has_amx())) as aside:
            aside(begin)

    def run(self, cancel: threading.Event, tell: Tell) -> None:
        """Trains until the recipe is done.

        PyTorch computes in a separate thread if it would otherwise leave an AMX state
        on which llama.cpp crashes. Raises Cancelled when `cancel` is set, DistillError
        for a loss that is not finite; the work until then is kept.
        """
        with closing(Aside(has_amx())) as aside:
            aside(self._run, cancel, tell)

    def _run(self, cancel: threading.Event, tell: Tell) -> None:
        began = saved = time.monotonic()
        before, loss = self.done, math.nan
        self.student.train()
        for batch in self._batches():
            if cancel.is_set():
                self._keep(began)
                raise Cancelled("stopped while training; the next run resumes here")
            value = self._step(batch)
            loss = value if math.isnan(loss) else 0.98 * loss + 0.02 * value
            now = time.monotonic()
            if now - saved > _SAVE:
                began, saved = self._keep(began), now
                left = (
                    (now - began + self.seconds) / self.done * (self.total - self.done)
                )
                tell(
                    f"training: {self.done} of {self.total} batches, loss {loss:.3f}, "
                    f"{left / 60:.0f} min left"
                )
        if self.done > before:
            self._keep(began)

    def _batches(self) -> Iterator[Batch[Any]]:
        """The remaining batches; every epoch has its own order."""
        recipe = self.recipe
        while self.done < self.total:
            epoch, at = divmod(self.done, self._a_round)
            few = batches(
                self._every,
                self.vocabulary,
                recipe.length,
                recipe.texts,
                recipe.seed + epoch,
            )
            for i, batch in enumerate(few):
                if i >= at and self.done < self.total:
                    yield batch

    def _step(self, batch: Batch[Any]) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate()
        with torch.autocast(self._on, torch.bfloat16, enabled=halves(self._on)):
            there = Batch(*(torch.from_numpy(array).to(self._on) for array in batch))
            loss = self.student.loss(there, self.recipe)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DistillError(
                f"the loss is {value} after {self.done} batches: lower the learning "
                f"rate ({self.recipe.rate:g}); the last checkpoint is kept"
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.recipe.clip)
        self._optimizer.step()
        self.done += 1
        return value

    def _rate(self) -> float:
        """The learning rate: linear warm-up, then cosine decay to a tenth."""
        recipe, done = self.recipe, self.done
        if done < recipe.warm:
            return recipe.rate * (done + 1) / recipe.warm
        gone = (done - recipe.warm) / max(1, self.total - recipe.warm)
        return recipe.rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * gone)))

    def _keep(self, began: float) -> float:
        """Writes a checkpoint and returns the current time."""
        now = time.monotonic()
        self.seconds += now - began
        state = {
            "student": self.student.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "done": self.done,
            "seconds": self.seconds,
            "made": self._made(),
        }
        try:
            with replacing(self._path) as file:
                torch.save(state, file)
        except (OSError, RuntimeError) as error:
            raise DistillError(
                f"{self._path} cannot be written ({_first_line(error)}): make room and "
                "start again, the previous checkpoint is kept"
            ) from error
        return now

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(
                path, map_location=self._on, weights_only=True
            )
            state["made"]["student"]
        except (*_BROKEN, pickle.UnpicklingError) as error:
            raise DistillError(
                f"{path} cannot be read as a checkpoint ({type(error).__name__}): "
                "remove it to train again"
            ) from error
        return state

    def _load(self) -> None:
        state = self._read(self._path)
        if state["made"] != self._made():
            raise DistillError(
                f"{self._path} was made with another recipe or other samples: remove "
                "it, or give another folder"
            )
        self.student.load_state_dict(state["student"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.done, self.seconds = state["done"], state["seconds"]

    def _made(self) -> dict[str, Any]:
        return {
            "recipe": asdict(self.recipe),
            "student": self.student.described(),
            "windows": len(self._every),
        }


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
