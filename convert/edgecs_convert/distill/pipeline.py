"""Makes a drafter for a target: data, training, export, measurement, choice.

Every stage resumes: samples and checkpoints are in a work folder, and finished work is
not repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from edgecs.engines.llama.tokenizer import read_pieces
from edgecs.errors import ConfigError
from edgecs.runtime.loader import Loaded
from edgecs_convert.distill.candidates import (
    Candidate,
    Helpers,
    call_times,
    candidate,
    measured,
)
from edgecs_convert.distill.data import Wanted, write_samples
from edgecs_convert.distill.drafter_kinds import HeadKind, Kind
from edgecs_convert.distill.export import About
from edgecs_convert.distill.recipe import Divergence, Recipe
from edgecs_convert.distill.samples import Sample, read_samples
from edgecs_convert.distill.target import TargetFile
from edgecs_convert.distill.texts import Vocabulary, choose_vocabulary, windows
from edgecs_convert.distill.train import Trainer

_SEEN, _UNSEEN, _OWN, _DRAFTERS = "samples", "unseen", "own", "drafters"
_CALMER = 0.2  # factor on the learning rate for further training
_UNSEEN_SHARE, _UNSEEN_MOST = 10, 30_000  # one in so many tokens is for measuring
_OWN_SHARE = 4  # one in so many further tokens is the drafter's own

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """Settings of a distillation.

    tokens: of training answers. rows: size of the vocabulary. kinds: of drafters, each
    a candidate. finish: losses with which each is trained for `finish_epochs` more,
    each giving a candidate too. prompts: a file of prompts instead of the topics;
    drafters are still measured on the topics. log: answers stored by sessions (`log`);
    the drafters of the work folder are trained on it, and on as many old samples to
    prevent forgetting.
    """

    tokens: int = 400_000
    rows: int = 12_288
    answer: int = 256  # maximum tokens of one answer
    parallel: int = 32  # answers in parallel
    prompts: Path | None = None
    recipe: Recipe = field(default_factory=Recipe)
    int8: bool = True
    log: Path | None = None
    kinds: Sequence[Kind] = (HeadKind(),)
    finish: Sequence[Divergence] = ()
    finish_epochs: float = 1.0


class Made(NamedTuple):
    """The path of the chosen drafter, and all candidates."""

    path: Path
    chosen: Candidate
    candidates: list[Candidate]


class _Data(NamedTuple):
    """The data that all candidates share."""

    seen: list[Sample]
    unseen: list[Sample]
    vocabulary: Vocabulary


def distill(
    loaded: Loaded,
    work: Path,
    out: Path,
    plan: Plan,
    tell: Tell,
    helpers: Helpers | None = None,
) -> Made:
    """Makes drafters for a loaded target and keeps the best; it must not exist yet.

    The best one has the highest expected speed-up with this machine's times. helpers:
    None: this process does everything. Raises ConfigError, ModelError, DistillError,
    Cancelled. Finished work stays in `work`.
    """
    for kind in plan.kinds:
        if kind.place(out).exists():
            raise ConfigError(f"{kind.place(out)} exists already: give another path")
    target = TargetFile(loaded.model.path)
    for kind in plan.kinds:  # answers take hours
        kind.check(target, plan.rows)
        if plan.log is not None and kind.layers(target):
            raise ConfigError(
                f"answers of sessions have no states of layers, which {kind.name} is "
                "trained on: give --kind head"
            )
    times: dict[int, float] = {}
    candidates: list[tuple[Candidate, Kind]] = []
    for kind in plan.kinds:
        data = _data(target, kind, loaded, work, plan, tell, helpers)
        times = times or call_times(loaded)
        trainings = _Trainings(target, loaded, data, work, plan, tell)
        for name, trainer, noted in trainings.of(kind):
            path = _export(name, kind, trainer, loaded, work, plan)
            tell(f"measuring {name} on held-out topics")
            found = measured(kind, path, loaded, data.unseen, helpers)
            coverage = data.vocabulary.coverage(data.unseen)
            made = candidate(name, path, coverage, found, times)
            figures = {**noted, "seconds": round(trainer.seconds), **made.state()}
            kind.note(path, figures)
            candidates.append((made, kind))
    chosen, kind = max(candidates, key=lambda one: (one[0].speedup, one[0].ideal))
    place = kind.place(out)
    kind.finish(chosen.path, place)
    for kind in plan.kinds:
        (work / f"{kind.name}-update.pt").unlink(
            missing_ok=True
        )  # the next log is different
    return Made(place, chosen, [made for made, _ in candidates])


def _data(
    target: TargetFile,
    kind: Kind,
    loaded: Loaded,
    work: Path,
    plan: Plan,
    tell: Tell,
    helpers: Helpers | None,
) -> _Data:
    """Both sets of samples with the states of a kind, and the drafters' vocabulary."""
    layers = kind.layers(target)
    which = "".join(f"-{layer}" for layer in layers)
    seen_in, unseen_in = work / f"{_SEEN}{which}", work / f"{_UNSEEN}{which}"
    wanted = Wanted(
        plan.tokens,
        most=plan.answer,
        parallel=plan.parallel,
        prompts=plan.prompts,
        seed=plan.recipe.seed,
        layers=layers,
    )
    few = min(_UNSEEN_MOST, max(1, plan.tokens // _UNSEEN_SHARE))
    others = replace(wanted, tokens=few, half="unseen", prompts=None)
    for folder, half in ((unseen_in, others), (seen_in, wanted)):
        write_samples(
            loaded.model,
            folder,
            half,
            loaded.cancel,
            tell,
            threads=loaded.target.threads,
            opened=helpers.answering if helpers else None,
        )
    seen = [*read_samples(seen_in, plan.tokens)]
    ends = sorted(loaded.model.vocabulary.ends)
    vocabulary = choose_vocabulary(
        seen, plan.rows, target.vocab_size, ends, kind.vocabulary()
    )
    return _Data(seen, [*read_samples(unseen_in, few)], vocabulary)


class _Trainings:
    """Trains all candidates, one after the other."""

    def __init__(
        self,
        target: TargetFile,
        loaded: Loaded,
        data: _Data,
        work: Path,
        plan: Plan,
        tell: Tell,
    ) -> None:
        self._target, self._loaded, self._data = target, loaded, data
        self._work, self._plan, self._tell = work, plan, tell

    def of(self, kind: Kind) -> Iterator[tuple[str, Trainer, dict[str, Any]]]:
        """Trained candidates of one kind: name, trainer, notes for the manifest."""
        recipe = kind.recipe(self._plan.recipe)
        first = self._work / f"{kind.name}.pt"
        if self._plan.log is not None:
            yield kind.name, *self._update(kind, recipe, first, self._plan.log)
            return
        trainer = self._trainer(kind, self._data.seen, recipe, first)
        own = self._work / f"{kind.name}-{_OWN}"
        if trainer.done < trainer.total:  # later stages of another training are useless
            shutil.rmtree(own, ignore_errors=True)
            for path in self._work.glob(f"{kind.name}-*.pt"):
                path.unlink()
        data = self._target, self._data.vocabulary, self._data.seen
        trainer.start(lambda: kind.start(trainer.student, *data, recipe))
        yield kind.name, self._run(trainer), self._noted(self._data.seen, recipe)
        for loss in self._plan.finish:
            calmer = replace(
                recipe,
                loss=loss,
                rate=round(recipe.rate * _CALMER, 12),
                epochs=self._plan.finish_epochs,
            )
            samples = self._data.seen
            if kind.speaks:
                samples = self._with_own(kind, first, recipe, own)
            name = f"{kind.name}-{loss}"
            after = self._trainer(kind, samples, calmer, self._work / f"{name}.pt")
            after.begin_from(first)
            earlier = f"{recipe.epochs:g} epochs of {recipe.loss}"
            noted = {**self._noted(samples, calmer), "after": earlier}
            yield name, self._run(after), noted

    def _update(
        self, kind: Kind, recipe: Recipe, first: Path, log: Path
    ) -> tuple[Trainer, dict[str, Any]]:
        """Trains a drafter further on the answers stored by sessions."""
        new = [*read_samples(log)]
        if not new:
            raise ConfigError(
                f"{log} has no answers: store some with `edgecs chat --log-answers "
                f"{log}`"
            )
        if new[0].states.shape[1] != self._target.width:
            raise ConfigError(
                f"the answers in {log} are from another model: give the log of this one"
            )
        calmer = replace(recipe, rate=recipe.rate * _CALMER)
        samples = [*new, *_as_much(self._data.seen, new)]
        path = self._work / f"{kind.name}-update.pt"
        trainer = self._trainer(kind, samples, calmer, path)
        trainer.begin_from(first)
        noted = self._noted(new, calmer)
        return self._run(trainer), {**noted, "prompts": "sessions"}

    def _with_own(
        self, kind: Kind, first: Path, recipe: Recipe, own: Path
    ) -> list[Sample]:
        """Answers written by the drafter, and as many of the target's."""
        from edgecs_convert.distill.on_policy import own_samples

        trained = self._trainer(kind, self._data.seen, recipe, first)
        written = own_samples(
            trained.student,
            self._data.vocabulary,
            self._loaded.model,
            self._data.seen,
            own,
            self._loaded.cancel,
            self._tell,
            tokens=self._plan.tokens // _OWN_SHARE,
            most=self._plan.answer,
            threads=self._loaded.target.threads,
            seed=recipe.seed,
        )
        return [*written, *_as_much(self._data.seen, written)]

    def _trainer(
        self, kind: Kind, samples: Sequence[Sample], recipe: Recipe, path: Path
    ) -> Trainer:
        vocabulary = self._data.vocabulary
        student = kind.begin(self._target, vocabulary, samples, recipe.seed)
        every = windows(samples, recipe.length, recipe.before)
        return Trainer(student, every, vocabulary, recipe, path)

    def _run(self, trainer: Trainer) -> Trainer:
        self._tell(f"training: {trainer.done:,} of {trainer.total:,} batches are done")
        trainer.run(self._loaded.cancel, self._tell)
        return trainer

    def _noted(self, samples: Sequence[Sample], recipe: Recipe) -> dict[str, Any]:
        prompts = self._plan.prompts
        return {
            "tokens": sum(sample.size for sample in samples),
            "answers": len(samples),
            "prompts": prompts.name if prompts else "topics",
            **asdict(recipe),
        }


def _as_much(old: Sequence[Sample], new: Sequence[Sample]) -> list[Sample]:
    """The first of the old samples, with about as many tokens as the new ones."""
    tokens = sum(sample.size for sample in new)
    found: list[Sample] = []
    for sample in old:
        if tokens <= 0:
            break
        found.append(sample)
        tokens -= sample.size
    return found


def _export(
    name: str, kind: Kind, trainer: Trainer, loaded: Loaded, work: Path, plan: Plan
) -> Path:
    target = TargetFile(loaded.model.path)
    shutil.rmtree(work / _DRAFTERS / name, ignore_errors=True)
    about = About(
        name=name,
        source=target.path.name,
        license=target.license,
        pieces=read_pieces(target.path),
        window=trainer.recipe.length,
        int8=plan.int8,
    )
    student, vocabulary = trainer.student, trainer.vocabulary
    return kind.export(work / _DRAFTERS, student, vocabulary, about, target)
