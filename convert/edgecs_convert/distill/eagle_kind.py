"""The kind of drafter that is an EAGLE-3 drafter."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecs.core.context import Tokens
from edgecs.core.files import replacing
from edgecs.engines.llama.tokenizer import read_pieces
from edgecs.errors import ConfigError
from edgecs.hub.compatibility import check_same
from edgecs.runtime.loader import Loaded
from edgecs_convert.distill.eagle_file import NAME, note_made, write_eagle
from edgecs_convert.distill.export import About
from edgecs_convert.distill.measure import Opened, opened_eagle
from edgecs_convert.distill.recipe import Recipe
from edgecs_convert.distill.samples import Sample
from edgecs_convert.distill.target import TargetFile
from edgecs_convert.distill.texts import Vocabulary

if TYPE_CHECKING:
    from edgecs_convert.distill.head_weights import TrainedHead

# chosen: more make the loss more exact, and each takes as long as a known token.
_NEGATIVES = 1024
# chosen: 1.5e-3 for a head becomes 8e-4.
_EAGLE_RATE = 8 / 15


@dataclass(frozen=True)
class EagleKind:
    """One layer on the inputs of three layers, in a GGUF.

    matrices: their type. head: folder of a head of the same target to begin with.
    """

    matrices: str = "q8_0"
    head: Path | None = None
    name: str = NAME
    speaks: bool = False

    def layers(self, target: TargetFile) -> tuple[int, ...]:
        """See `Kind`."""
        return target.eagle_shape(1).layers

    def vocabulary(self) -> Tokens | None:
        """That of the head."""
        return None if self.head is None else self._head.ids

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
            began=given.began if self.head is None else self._head.name,
        )

    def check(self, target: TargetFile, rows: int) -> None:
        """See `Kind`."""
        shape = target.eagle_shape(rows)
        if self.head is None:
            return
        head = self._head
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
            head = self._head
            theirs = head.output(vocabulary.ids, output)
            weights = {**head.weights, "output": theirs}
        begun = Begun(output, target.norm(), target.last_layer(student.shape), weights)
        begin(student, begun, samples, vocabulary, recipe)

    @cached_property
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
