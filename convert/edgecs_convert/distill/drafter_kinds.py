"""The kinds of drafters, with the steps that differ between them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from edgecs.core.context import Tokens
from edgecs.hub.drafter_manifest import read_drafter, write_drafter
from edgecs.runtime.loader import Loaded
from edgecs_convert.distill.export import About, export_decoder, export_head
from edgecs_convert.distill.measure import Opened, opened_onnx
from edgecs_convert.distill.recipe import Recipe
from edgecs_convert.distill.samples import Sample
from edgecs_convert.distill.target import TargetFile
from edgecs_convert.distill.texts import Vocabulary
from edgecs_convert.folders import whole_folder


class Kind(Protocol):
    """A kind of drafter."""

    @property
    def name(self) -> str:
        """The name of the kind on the command line."""

    @property
    def speaks(self) -> bool:
        """Whether it can generate answers by itself."""

    def layers(self, target: TargetFile) -> tuple[int, ...]:
        """The layers whose inputs it is trained on; (): the final states."""

    def vocabulary(self) -> Tokens | None:
        """The target's ids that the drafter's vocabulary is chosen from; None: all."""

    def recipe(self, given: Recipe) -> Recipe:
        """Adapts a recipe for a head to this kind."""

    def check(self, target: TargetFile, rows: int) -> None:
        """Raises ModelError or ConfigError if this kind does not fit the target."""

    def begin(
        self,
        target: TargetFile,
        vocabulary: Vocabulary,
        samples: Sequence[Sample],
        seed: int,
    ) -> Any:
        """A `Student` before any training. Raises what `check` raises."""

    def start(
        self,
        student: Any,
        target: TargetFile,
        vocabulary: Vocabulary,
        samples: Sequence[Sample],
        recipe: Recipe,
    ) -> None:
        """Computes what a new training begins with, for minutes at most."""

    def export(
        self,
        folder: Path,
        student: Any,
        vocabulary: Vocabulary,
        about: About,
        target: TargetFile,
    ) -> Path:
        """Writes a drafter of a name into a folder, and returns its path."""

    def opened(self, path: Path, loaded: Loaded) -> AbstractContextManager[Opened]:
        """An exported drafter, to be measured."""

    def note(self, path: Path, figures: Mapping[str, Any]) -> None:
        """Writes figures into an exported drafter."""

    def place(self, out: Path) -> Path:
        """The path of the finished drafter for a path that was asked for."""

    def finish(self, path: Path, out: Path) -> None:
        """Copies an exported drafter to its place, atomically."""


class _OnnxKind:
    """What the kinds of drafters in ONNX have in common."""

    def layers(self, target: TargetFile) -> tuple[int, ...]:
        """See `Kind`."""
        return ()

    def vocabulary(self) -> Tokens | None:
        """See `Kind`."""
        return None

    def start(
        self,
        student: Any,
        target: TargetFile,
        vocabulary: Vocabulary,
        samples: Sequence[Sample],
        recipe: Recipe,
    ) -> None:
        """Nothing: it begins with weights of the target."""

    def opened(self, path: Path, loaded: Loaded) -> AbstractContextManager[Opened]:
        """See `Kind`."""
        target = loaded.target
        return opened_onnx(path, target.width, target.vocab_size, loaded.cancel)

    def note(self, path: Path, figures: Mapping[str, Any]) -> None:
        """See `Kind`."""
        write_drafter(replace(read_drafter(path), made=figures))

    def place(self, out: Path) -> Path:
        """See `Kind`."""
        return out

    def finish(self, path: Path, out: Path) -> None:
        """See `Kind`."""

        def fill(folder: Path) -> None:
            shutil.copytree(path, folder, dirs_exist_ok=True)
            write_drafter(replace(read_drafter(folder), name=out.name))

        whole_folder(out, fill)


@dataclass(frozen=True)
class HeadKind(_OnnxKind):
    """One layer on the target's hidden states."""

    name: str = "head"
    speaks: bool = False

    def recipe(self, given: Recipe) -> Recipe:
        """Returns the recipe unchanged."""
        return given

    def check(self, target: TargetFile, rows: int) -> None:
        """See `Kind`."""
        target.shape(rows)

    def begin(
        self,
        target: TargetFile,
        vocabulary: Vocabulary,
        samples: Sequence[Sample],
        seed: int,
    ) -> Any:
        """See `Kind`."""
        from edgecs_convert.distill.head import Head

        head = Head(target.shape(vocabulary.rows), seed)
        head.begin_from(target.table(vocabulary.ids), target.norm())
        return head

    def export(
        self,
        folder: Path,
        student: Any,
        vocabulary: Vocabulary,
        about: About,
        target: TargetFile,
    ) -> Path:
        """See `Kind`."""
        return export_head(folder / about.name, student, vocabulary.ids, about)


@dataclass(frozen=True)
class DecoderKind(_OnnxKind):
    """A small independent language model. size: layers; width: see `DecoderShape`."""

    size: int = 2
    width: int | None = None
    name: str = "decoder"
    speaks: bool = True

    def recipe(self, given: Recipe) -> Recipe:
        """Uses longer texts, because it needs the prompt as well, and smaller steps."""
        return replace(given, rate=given.rate * 0.5, length=320, before=160)

    def check(self, target: TargetFile, rows: int) -> None:
        """See `Kind`."""
        from edgecs_convert.distill.decoder import DecoderShape, check

        check(target, DecoderShape(self.size, self.width))

    def begin(
        self,
        target: TargetFile,
        vocabulary: Vocabulary,
        samples: Sequence[Sample],
        seed: int,
    ) -> Any:
        """See `Kind`."""
        from edgecs_convert.distill.decoder import DecoderShape, begin

        shape = DecoderShape(self.size, self.width)
        return begin(target, vocabulary.ids, shape, seed)

    def export(
        self,
        folder: Path,
        student: Any,
        vocabulary: Vocabulary,
        about: About,
        target: TargetFile,
    ) -> Path:
        """See `Kind`."""
        return export_decoder(folder / about.name, student, about)
