"""The kinds of drafters, with the steps that differ between them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from edgecs.core.files import replacing
from edgecs.hub.drafter_manifest import read_drafter, write_drafter
from edgecs.runtime.loader import Loaded
from edgecs_convert.distill.eagle_file import NAME as EAGLE
from edgecs_convert.distill.eagle_file import note_made, write_eagle
from edgecs_convert.distill.export import About, export_decoder, export_head
from edgecs_convert.distill.measure import Opened, opened_eagle, opened_onnx
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


@dataclass(frozen=True)
class EagleKind:
    """One layer on the inputs of three layers, in a GGUF. matrices: their type."""

    matrices: str = "q8_0"
    name: str = EAGLE
    speaks: bool = False

    def layers(self, target: TargetFile) -> tuple[int, ...]:
        """See `Kind`."""
        return target.eagle_shape(1).layers

    def recipe(self, given: Recipe) -> Recipe:
        """Uses whole texts, which llama.cpp reads from their beginning."""
        return replace(given, length=512, before=256, likeness=0.0)

    def check(self, target: TargetFile, rows: int) -> None:
        """See `Kind`."""
        target.eagle_shape(rows)

    def begin(
        self,
        target: TargetFile,
        vocabulary: Vocabulary,
        samples: Sequence[Sample],
        seed: int,
    ) -> Any:
        """See `Kind`."""
        from edgecs_convert.distill.eagle import Eagle

        shape = target.eagle_shape(vocabulary.rows)
        eagle = Eagle(shape, target.embeddings(), seed)
        output, layer = target.table(vocabulary.ids), target.last_layer(shape)
        eagle.begin_from(output, target.norm(), samples, layer)
        return eagle

    def export(
        self,
        folder: Path,
        student: Any,
        vocabulary: Vocabulary,
        about: About,
        target: TargetFile,
    ) -> Path:
        """See `Kind`."""
        path = folder / f"{about.name}-{self.matrices}.gguf"
        folder.mkdir(parents=True, exist_ok=True)
        write_eagle(
            path,
            student.arrays(),
            student.shape,
            vocabulary.ids,
            target,
            kind=self.matrices,
            name=about.name,
            license=about.license,
        )
        return path

    def opened(self, path: Path, loaded: Loaded) -> AbstractContextManager[Opened]:
        """See `Kind`."""
        return opened_eagle(path, loaded)

    def note(self, path: Path, figures: Mapping[str, Any]) -> None:
        """See `Kind`."""
        note_made(path, figures)

    def place(self, out: Path) -> Path:
        """See `Kind`: the file has the suffix that llama.cpp's tools expect."""
        return out if out.suffix == ".gguf" else out.with_name(f"{out.name}.gguf")

    def finish(self, path: Path, out: Path) -> None:
        """See `Kind`."""
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as file, path.open("rb") as whole:
            shutil.copyfileobj(whole, file)
