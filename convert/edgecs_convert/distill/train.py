"""Training a head: soft cross-entropy to the target's best tokens, in several passes.

Everything that a run needs to go on lies in one checkpoint, which is replaced as a
whole. Given the same samples, recipe and machine a run that was interrupted ends with
the weights of one that was not.
"""

from __future__ import annotations

import math
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from edgecs.errors import Cancelled, DistillError
from edgecs_convert.distill.head import Head
from edgecs_convert.distill.texts import Batch, Vocabulary, Window, batches

_SAVE = 60.0  # seconds between two checkpoints
_BROKEN = (OSError, RuntimeError, KeyError, EOFError, ValueError)


@dataclass(frozen=True)
class Recipe:
    """How a head is trained; what is written into its manifest."""

    epochs: float = 4.0
    rate: float = 1.5e-3  # highest learning rate
    warm: int = 100  # batches until it is reached
    texts: int = 4  # of a batch: many small steps teach more than few large ones
    length: int = 160  # tokens of a text
    passes: int = 3
    fading: float = 0.8  # weight of a pass over that of the one before it
    likeness: float = 0.1  # weight of the distance of states
    decay: float = 0.01
    clip: float = 1.0  # norm of the gradient
    seed: int = 1


class Agreement(NamedTuple):
    """How often the first, the first two, the first three ... tokens were right."""

    shares: list[float]
    tokens: int

    def __str__(self) -> str:
        return " / ".join(f"{share:.3f}" for share in self.shares)


Tell = Callable[[str], None]


def device() -> str:
    """Where torch computes: CUDA, Apple's GPU, or the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class Trainer:
    """A head under training, which can stop and go on.

    samples: windows to learn from. path: of the checkpoint; one that was made with
    another recipe is refused.
    """

    def __init__(
        self,
        head: Head,
        every: Sequence[Window],
        vocabulary: Vocabulary,
        recipe: Recipe,
        path: Path,
        *,
        on: str | None = None,
    ) -> None:
        self.head, self.recipe = head.to(on or device()), recipe
        self._on = on or device()
        self.vocabulary = vocabulary
        self._every, self._path = every, path
        self._a_round = max(1, math.ceil(len(every) / recipe.texts))
        self.total = max(1, round(self._a_round * recipe.epochs))
        self.done = 0  # batches
        self.seconds = 0.0  # of training, over all runs
        matrices = [w for w in head.parameters() if w.ndim == 2]
        vectors = [w for w in head.parameters() if w.ndim == 1]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": recipe.decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=recipe.rate,
            betas=(0.9, 0.95),
        )
        if path.exists():
            self._load()

    def begin_from(self, path: Path) -> None:
        """Takes over the weights of another training's checkpoint, if it is new.

        Raises DistillError where there is none, or one of another head.
        """
        if self.done:
            return
        if not path.exists():
            raise DistillError(f"there is no checkpoint {path}: train a drafter first")
        state = self._read(path)
        if state["made"]["shape"] != self.head.shape.state():
            raise DistillError(f"{path} is of another head: give the same --rows")
        self.head.load_state_dict(state["head"])

    def run(self, cancel: threading.Event, tell: Tell) -> None:
        """Trains until the recipe is done.

        Raises Cancelled when `cancel` is set, DistillError for a loss that is no
        number; what was done until then is kept.
        """
        began = saved = time.monotonic()
        before, loss = self.done, math.nan
        self.head.train()
        for batch in self._batches():
            if cancel.is_set():
                self._keep(began)
                raise Cancelled(
                    "stopped while training; it goes on from here next time"
                )
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

    def _batches(self) -> Iterator[Batch]:
        """What is still to be done, every epoch in an order of its own."""
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

    def _step(self, batch: Batch) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate()
        with torch.autocast(self._on, torch.bfloat16, enabled=self._on != "mps"):
            loss = loss_of(self.head, batch, self.recipe, self._on)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DistillError(
                f"the loss is {value} after {self.done} batches: lower the learning "
                f"rate ({self.recipe.rate:g}); the last checkpoint is kept"
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), self.recipe.clip)
        self._optimizer.step()
        self.done += 1
        return value

    def _rate(self) -> float:
        """Up in a line, down in a cosine to a tenth."""
        recipe, done = self.recipe, self.done
        if done < recipe.warm:
            return recipe.rate * (done + 1) / recipe.warm
        gone = (done - recipe.warm) / max(1, self.total - recipe.warm)
        return recipe.rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * gone)))

    def _keep(self, began: float) -> float:
        """Writes a checkpoint; the time from which the next one counts."""
        now = time.monotonic()
        self.seconds += now - began
        part = self._path.with_suffix(".part")
        state = {
            "head": self.head.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "done": self.done,
            "seconds": self.seconds,
            "made": self._made(),
        }
        try:
            torch.save(state, part)
            os.replace(part, self._path)
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            raise DistillError(
                f"{self._path} cannot be written ({_first_line(error)}): make room and "
                "start again, the checkpoint before it is kept"
            ) from error
        return now

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(
                path, map_location=self._on, weights_only=True
            )
            state["made"]["shape"]
        except (*_BROKEN, pickle.UnpicklingError) as error:
            raise DistillError(
                f"{path} cannot be read as a checkpoint ({type(error).__name__}): "
                "remove it to train anew"
            ) from error
        return state

    def _load(self) -> None:
        state = self._read(self._path)
        if state["made"] != self._made():
            raise DistillError(
                f"{self._path} was made with another recipe or other samples: remove "
                "it, or give another folder"
            )
        self.head.load_state_dict(state["head"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.done, self.seconds = state["done"], state["seconds"]

    def _made(self) -> dict[str, Any]:
        return {
            "recipe": asdict(self.recipe),
            "shape": self.head.shape.state(),
            "windows": len(self._every),
        }


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def loss_of(head: Head, batch: Batch, recipe: Recipe, on: str) -> Tensor:
    """Of one batch: every pass where it has seen as many tokens, later ones less."""
    tokens, states, next_states, rows, logits, _, counts = (
        torch.from_numpy(array).to(on) for array in batch
    )
    steps = head(tokens, states, recipe.passes)
    total, weights = torch.zeros((), device=on), 0.0
    for s, out in enumerate(steps):
        here = counts.clone()
        here[:, s:] &= counts[:, : counts.shape[1] - s]  # its draft began in the answer
        here[:, :s] = False
        if not here.any():
            continue
        mine = out[here]
        said = head.logits(mine).float()
        law = logits[here].softmax(-1)
        best = said.gather(1, rows[here])
        entropy = said.logsumexp(-1) - (law * best).sum(-1)
        apart = torch.nn.functional.smooth_l1_loss(mine.float(), next_states[here])
        weight = recipe.fading**s
        total = total + weight * (entropy.mean() + recipe.likeness * apart)
        weights += weight
    return total / max(weights, 1e-9)


def agreement(
    head: Head,
    every: Sequence[Window],
    vocabulary: Vocabulary,
    recipe: Recipe,
    *,
    on: str | None = None,
    most: int = 3,
) -> Agreement:
    """How often drafts of up to `most` tokens are what the target said, greedily.

    Drafts of all lengths begin at the same tokens, those with as many after them. A
    token that the vocabulary lacks is never right.
    """
    on = on or device()
    head.eval().to(on)
    right, total = np.zeros(most), 0
    for batch in batches(every, vocabulary, recipe.length, recipe.texts, None):
        tokens, states = (torch.from_numpy(a).to(on) for a in batch[:2])
        with torch.no_grad(), torch.autocast(on, torch.bfloat16, enabled=on != "mps"):
            steps = head(tokens, states, most)
            said = [head.logits(out).argmax(-1).cpu().numpy() for out in steps]
        begins = batch.counts.copy()
        for s in range(1, most):
            begins[:, :-s] &= batch.counts[:, s:]
            begins[:, -s:] = False
        same = begins.copy()
        total += int(begins.sum())
        for s in range(most):
            hit = said[s] == batch.next_tokens
            shifted = np.zeros_like(hit)
            shifted[:, : hit.shape[1] - s] = hit[:, s:]
            same &= shifted
            right[s] += same.sum()
    return Agreement((right / max(1, total)).tolist(), total)
