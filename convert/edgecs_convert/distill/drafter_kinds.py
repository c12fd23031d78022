"""The kinds of drafters, with the steps that differ between them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgecs.core.context import Tokens
from edgecs.core.files import replacing
from edgecs.engines.llama.tokenizer import read_pieces
from edgecs.errors import ConfigError
from edgecs.hub.compatibility import check_same
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

if TYPE_CHECKING:
    from edgecs_convert.distill.head_weights import TrainedHead


# chosen: more make the loss more exact, and each takes as long as a known token.
_NEGATIVES = 1024
# chosen: 1.5e-3 for a head becomes 8e-4.
_EAGLE_RATE = 8 / 15


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


@dataclass(frozen=True)
class EagleKind:
    """One layer on the inputs of three layers, in a GGUF.

    matrices: their type. head: folder of a head of the same target to begin with.
    """

    matrices: str = "q8_0"
    head: Path | None = None
    name: str = EAGLE
    speaks: bool = False

    def layers(self, target: TargetFile) -> tuple[int, ...]:
        """See `Kind`."""
        return target.eagle_shape(1).layers

    def vocabulary(self) -> Tokens | None:
        """That of the head."""
        return None if self.head is None else self._head().ids

    def recipe(self, given: Recipe) -> Recipe:
        """Uses whole texts, which llama.cpp reads from their beginning.

        Smaller steps on fewer texts: much of the drafter is known when it begins.
        """
        return replace(
            given,
            length=512,
            before=256,
            texts=max(1, given.texts // 2),
            rate=round(given.rate * _EAGLE_RATE, 12),
            likeness=0.0,
            negatives=_NEGATIVES,
            began=given.began if self.head is None else self._head().name,
        )

    def check(self, target: TargetFile, rows: int) -> None:
        """See `Kind`."""
        shape = target.eagle_shape(rows)
        if self.head is None:
            return
        head = self._head()
        check_same(
            read_pieces(target.path),
            head.vocabulary,
            target_name=target.path.name,
            drafter_name=head.name,
        )
        gate, key = head.weights["gate"].shape, head.weights["key"].shape
        whole = key[1] % shape.size == 0 and shape.width % key[1] == 0
        whole = whole and 0 <= head.ids.min() <= head.ids.max() < target.vocab_size
        if gate != (shape.width, shape.inner) or not whole:
            raise ConfigError(
                f"{self.head} is a head for states of {gate[0]}, and those of "
                f"{target.path.name} have {shape.width}: give a head that was made for "
                "this model"
            )

    def begin(
        self,
        target: TargetFile,
        vocabulary: Vocabulary,
        samples: Sequence[Sample],
        seed: int,
    ) -> Any:
        """See `Kind`."""
        from edgecs_convert.distill.eagle import Eagle

        return Eagle(target.eagle_shape(vocabulary.rows), target.embeddings(), seed)

    def start(
        self,
        student: Any,
        target: TargetFile,
        vocabulary: Vocabulary,
        samples: Sequence[Sample],
        recipe: Recipe,
    ) -> None:
        """See `Kind`."""
        from edgecs_convert.distill.eagle_start import Begun, begin

        output = target.table(vocabulary.ids)
        weights = None
        if self.head is not None:
            head = self._head()
            theirs = head.output(vocabulary.ids, output)
            weights = {**head.weights, "output": theirs}
        begun = Begun(output, target.norm(), target.last_layer(student.shape), weights)
        begin(student, begun, samples, vocabulary, recipe)

    def _head(self) -> TrainedHead:
        from edgecs_convert.distill.head_weights import read_head

        assert self.head is not None
        return read_head(self.head)

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
