"""From a target to a drafter: write, train, export, measure; every stage resumes.

Samples and the checkpoint of the training lie in a work folder; what is done there is
not done again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgecs.backends.llama_vocabulary import read_pieces
from edgecs.errors import ConfigError
from edgecs.load import Loaded
from edgecs.onnx_manifest import read_drafter, write_drafter
from edgecs.probe import curve
from edgecs.theory import draft_speedup
from edgecs_convert.distill.data import Wanted, write_samples
from edgecs_convert.distill.export import export_head
from edgecs_convert.distill.head import Head
from edgecs_convert.distill.measure import Worth, worth
from edgecs_convert.distill.samples import Sample, read_samples
from edgecs_convert.distill.target import TargetFile
from edgecs_convert.distill.texts import (
    PROMPT,
    Vocabulary,
    choose_vocabulary,
    windows,
)
from edgecs_convert.distill.train import Recipe, Trainer
from edgecs_convert.folders import whole_folder

_SEEN, _UNSEEN, _CHECKPOINT, _UPDATE = "samples", "unseen", "head.pt", "update.pt"
_CALMER = 0.2  # of the learning rate, where a head that was trained learns more
_UNSEEN_SHARE, _UNSEEN_MOST = 10, 30_000  # one of so many tokens is for measuring
_WIDTHS = (1, 2, 3, 4)  # of the target, that are timed

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to make. tokens: of answers to learn from. rows: tokens that it knows.

    prompts: a file of prompts instead of the topics. With it the drafter is measured on
    the topics all the same. log: what sessions kept (`log`): the head of the work
    folder learns from it, and from as many of its old samples, so as not to forget.
    """

    tokens: int = 400_000
    rows: int = 12_288
    answer: int = 256  # tokens of one answer, at most
    seats: int = 32  # answers at once
    prompts: Path | None = None
    recipe: Recipe = field(default_factory=Recipe)
    int8: bool = True
    log: Path | None = None  # answers of sessions, for a head that is trained already


@dataclass(frozen=True)
class Made:
    """A finished drafter, and what it is worth on this machine."""

    folder: Path
    coverage: float  # share of what the target says that it knows, on unseen topics
    worth: Worth
    single: float  # seconds of the target's call of one token
    speedup: float  # expected, of greedy answers, over plain decoding

    def state(self) -> dict[str, Any]:
        """As plain numbers."""
        return {
            "coverage": round(self.coverage, 4),
            "agreement": [round(share, 4) for share in self.worth.shares],
            "ms_a_token": round(self.worth.seconds * 1e3, 3),
            "target_ms": round(self.single * 1e3, 3),
            "expected_speedup": round(self.speedup, 3),
        }


def distill(loaded: Loaded, work: Path, out: Path, plan: Plan, tell: Tell) -> Made:
    """Makes a head for a loaded target; `out` must not exist yet.

    Raises ConfigError, ModelError, DistillError, Cancelled. What was done is in `work`.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already: give a folder that does not")
    target = TargetFile(loaded.model.path)
    target.shape(plan.rows)  # refuses at once what cannot be served
    unseen = _write(loaded, work, plan, tell)
    trainer, trained = _trainer(target, loaded, work, plan)
    tell(
        f"training on {trained['tokens']:,} tokens: {trainer.done:,} of "
        f"{trainer.total:,} batches are done"
    )
    trainer.run(loaded.cancel, tell)
    vocabulary = trainer.vocabulary
    draft = work / "drafter"
    shutil.rmtree(draft, ignore_errors=True)
    export_head(
        draft,
        trainer.head.shape,
        trainer.head.arrays(),
        vocabulary,
        read_pieces(target.path),
        name=out.name,
        source=target.path.name,
        license=target.license,
        window=plan.recipe.length,
        int8=plan.int8,
    )
    tell("measuring the drafter on topics that it has not seen")
    size, cancel = target.vocab_size, loaded.cancel
    measured = worth(draft, unseen, size, cancel)
    times = _times(loaded)
    speedup = draft_speedup(measured.shares, measured.seconds, times)
    known = vocabulary.coverage(unseen)
    made = Made(out, known, measured, times[1], speedup)
    figures = {**trained, "seconds": round(trainer.seconds), **made.state()}
    write_drafter(replace(read_drafter(draft), made=figures))
    whole_folder(out, lambda half: _copy(draft, half))
    (work / _UPDATE).unlink(missing_ok=True)  # the next log is another one
    return made


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


def _write(loaded: Loaded, work: Path, plan: Plan, tell: Tell) -> list[Sample]:
    """Both sets of samples; those that are not for training."""
    wanted = Wanted(
        plan.tokens,
        most=plan.answer,
        seats=plan.seats,
        prompts=plan.prompts,
        seed=plan.recipe.seed,
    )
    few = min(_UNSEEN_MOST, max(1, plan.tokens // _UNSEEN_SHARE))
    others = replace(wanted, tokens=few, half="unseen", prompts=None)
    for name, which in ((_UNSEEN, others), (_SEEN, wanted)):
        write_samples(
            loaded.model,
            work / name,
            which,
            loaded.cancel,
            tell,
            threads=loaded.target.threads,
        )
    return [*read_samples(work / _UNSEEN, few)]


def _trainer(
    target: TargetFile, loaded: Loaded, work: Path, plan: Plan
) -> tuple[Trainer, dict[str, Any]]:
    """The training as far as it went, and what is to be noted about it."""
    samples = [*read_samples(work / _SEEN, plan.tokens)]
    vocabulary = choose_vocabulary(
        samples, plan.rows, target.vocab_size, sorted(loaded.model.vocabulary.ends)
    )
    head = Head(target.shape(vocabulary.rows), plan.recipe.seed)
    head.begin_from(target.table(vocabulary.ids), target.norm())
    if plan.log is not None:
        return _updating(head, vocabulary, samples, work, plan, plan.log)
    every = windows(samples, plan.recipe.length)
    trainer = Trainer(head, every, vocabulary, plan.recipe, work / _CHECKPOINT)
    noted = {
        "tokens": sum(sample.size for sample in samples),
        "answers": len(samples),
        "prompts": plan.prompts.name if plan.prompts else "topics",
        **asdict(plan.recipe),
    }
    return trainer, noted


def _updating(
    head: Head,
    vocabulary: Vocabulary,
    old: list[Sample],
    work: Path,
    plan: Plan,
    log: Path,
) -> tuple[Trainer, dict[str, Any]]:
    """More training of a head, on what sessions kept."""
    new = [*read_samples(log)]
    if not new:
        raise ConfigError(
            f"{log} has no answers: keep some with `edgecs chat --log-answers {log}`"
        )
    if new[0].states.shape[1] != head.shape.width:
        raise ConfigError(f"the answers in {log} are of another model: give its own")
    tokens = sum(sample.size for sample in new)
    remembered: list[Sample] = []
    for sample in old:
        if sum(one.size for one in remembered) >= tokens:
            break
        remembered.append(sample)
    recipe = replace(plan.recipe, rate=plan.recipe.rate * _CALMER)
    every = windows([*new, *remembered], recipe.length)
    trainer = Trainer(head, every, vocabulary, recipe, work / _UPDATE)
    trainer.begin_from(work / _CHECKPOINT)
    noted = {
        "tokens": tokens,
        "answers": len(new),
        "prompts": "sessions",
        **asdict(recipe),
    }
    return trainer, noted


def _times(loaded: Loaded) -> dict[int, float]:
    loaded.target.reset()
    return curve(loaded.target, PROMPT, _WIDTHS, repeats=5)
