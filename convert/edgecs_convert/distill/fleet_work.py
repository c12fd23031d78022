"""What workers of a fleet do for distillation: write answers, and try drafters."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from edgecs.errors import DistillError
from edgecs.fleet.host import Prepared
from edgecs.fleet.ray_pool import RayFleet
from edgecs.fleet.spread import Item, results
from edgecs.fleet.worker_target import WorkerTarget
from edgecs.runtime.loader import Loaded
from edgecs_convert.distill.data import (
    Answerer,
    Wanted,
    answerer_of,
    room_of,
)
from edgecs_convert.distill.drafter_kinds import Kind
from edgecs_convert.distill.measure import Counts, counts
from edgecs_convert.distill.parallel_decode import Task, many_sequences
from edgecs_convert.distill.samples import Sample

_PARTS = 2  # tasks of an item, for each sequence of a worker
_PIECES = 4  # items of a drafter, for each worker that may come

Tell = Callable[[str], None]


@dataclass(frozen=True)
class AnswerSetup:
    """A worker that writes answers of a target."""

    target: WorkerTarget
    wanted: Wanted

    @contextmanager
    def opened(self) -> Iterator[Prepared]:
        """Loads the target. Raises ModelError, OutOfMemory."""
        cancel = threading.Event()
        with ExitStack() as closing:
            loaded = closing.enter_context(self.target.load(cancel))
            scorer = many_sequences(
                loaded.model,
                cancel,
                sequences=self.wanted.parallel,
                room=room_of(self.wanted),
                threads=loaded.target.threads,
            )
            answerer = answerer_of(
                closing.enter_context(scorer), loaded.model, self.wanted
            )
            yield Prepared(lambda tasks: [*answerer(iter(tasks))])


class Trial(NamedTuple):
    """A drafter to be tried on some answers: its kind, and its files by name."""

    kind: Kind
    name: str
    files: dict[str, bytes]  # {"": ...}: the drafter is one file
    samples: list[Sample]


@dataclass(frozen=True)
class TrialSetup:
    """A worker that tries drafters of a target."""

    target: WorkerTarget

    @contextmanager
    def opened(self) -> Iterator[Prepared]:
        """Loads the target. Raises ModelError, OutOfMemory."""
        with self.target.load(threading.Event()) as loaded:
            yield Prepared(lambda trial: _tried(trial, loaded))


@dataclass
class DistillFleet:
    """Workers that do for `distill` what can be done apart.

    threads: of the cluster that a worker reserves, 0: its machine.
    """

    fleet: RayFleet
    target: WorkerTarget
    threads: int
    cancel: threading.Event
    tell: Tell

    @contextmanager
    def answering(self, wanted: Wanted) -> Iterator[Answerer]:
        """Workers that answer, see `data.write_samples`."""
        setup = AnswerSetup(self.target, wanted)
        with self.fleet.pool(setup, threads=self.threads) as pool:

            def answer(tasks: Iterator[Task]) -> Iterator[Sample]:
                parts = part_items(tasks, _PARTS * wanted.parallel)
                take = lambda kind: next(parts, None)  # noqa: E731
                for item, found in results(pool, take, self.cancel, self.tell):
                    yield from checked(item, found)

            yield answer

    def tried(self, kind: Kind, path: Path, samples: Sequence[Sample]) -> Counts:
        """How often drafts of an exported drafter are right in samples."""
        files = packed(path)
        pieces = [[*samples[i::_PIECES]] for i in range(_PIECES)]
        items = iter(
            Item(f"part {i + 1} of {path.name}", Trial(kind, path.name, files, piece))
            for i, piece in enumerate(pieces)
            if piece
        )
        total = Counts.none()
        if not samples:
            return total
        with self.fleet.pool(TrialSetup(self.target), threads=self.threads) as pool:
            for _, found in results(
                pool, lambda kind: next(items, None), self.cancel, self.tell
            ):
                total = total.plus(found)
        return total


def part_items(tasks: Iterator[Task], size: int) -> Iterator[Item]:
    """Groups of tasks that a worker answers together."""
    while part := [*islice(tasks, size)]:
        yield Item(f"questions {part[0].number} to {part[-1].number}", part)


def checked(item: Item, found: Sequence[Sample]) -> Sequence[Sample]:
    """The answers to the tasks of an item. Raises DistillError for other ones."""
    asked = {task.number: task for task in item.payload}
    right = len(found) == len(asked) and all(
        sample.number in asked
        and sample.tokens[: sample.start].tolist()
        == asked[sample.number].prompt.tolist()
        for sample in found
    )
    if not right or len({sample.number for sample in found}) != len(asked):
        raise DistillError(
            f"a worker has answered other questions than {item.key}: end the workers "
            "and run the same command again"
        )
    return found


def packed(path: Path) -> dict[str, bytes]:
    """The files of an exported drafter, which is a file or a folder of files."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def unpacked(files: dict[str, bytes], name: str, folder: Path) -> Path:
    """Writes them into a folder and returns the path of the drafter."""
    path = folder / Path(name).name
    if [*files] == [""]:
        path.write_bytes(files[""])
        return path
    path.mkdir()
    for file, content in files.items():
        (path / Path(file).name).write_bytes(content)
    return path


def _tried(trial: Trial, loaded: Loaded) -> Counts:
    with tempfile.TemporaryDirectory() as folder:
        path = unpacked(trial.files, trial.name, Path(folder))
        with trial.kind.opened(path, loaded) as opened:
            return counts(opened, trial.samples, loaded.cancel)._replace(took=[])
