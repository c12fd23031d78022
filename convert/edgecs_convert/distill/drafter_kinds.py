"""The kinds of drafters, with the steps that differ between them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from edgecs.errors import ConfigError
from edgecs_convert.distill.export import About, export_decoder, export_head
from edgecs_convert.distill.recipe import Recipe
from edgecs_convert.distill.target import TargetFile
from edgecs_convert.distill.texts import Vocabulary


class Kind(Protocol):
    """A kind of drafter."""

    @property
    def name(self) -> str:
        """The name of the kind on the command line."""

    @property
    def speaks(self) -> bool:
        """Whether it can generate answers by itself."""

    def recipe(self, given: Recipe) -> Recipe:
        """Adapts a recipe for a head to this kind."""

    def check(self, target: TargetFile, rows: int) -> None:
        """Raises ModelError or ConfigError if this kind does not fit the target."""

    def begin(self, target: TargetFile, vocabulary: Vocabulary, seed: int) -> Any:
        """A `Student` before any training. Raises what `check` raises."""

    def export(
        self, out: Path, student: Any, vocabulary: Vocabulary, about: About
    ) -> None:
        """Writes a drafter's folder."""


@dataclass(frozen=True)
class HeadKind:
    """One layer on the target's hidden states."""

    name: str = "head"
    speaks: bool = False

    def recipe(self, given: Recipe) -> Recipe:
        """Returns the recipe unchanged."""
        return given

    def check(self, target: TargetFile, rows: int) -> None:
        """See `Kind`."""
        target.shape(rows)

    def begin(self, target: TargetFile, vocabulary: Vocabulary, seed: int) -> Any:
        """See `Kind`."""
        from edgecs_convert.distill.head import Head

        head = Head(target.shape(vocabulary.rows), seed)
        head.begin_from(target.table(vocabulary.ids), target.norm())
        return head

    def export(
        self, out: Path, student: Any, vocabulary: Vocabulary, about: About
    ) -> None:
        """See `Kind`."""
        export_head(out, student, vocabulary.ids, about)


@dataclass(frozen=True)
class DecoderKind:
    """A small independent language model. layers, width: see `DecoderShape`."""

    layers: int = 2
    width: int | None = None
    name: str = "decoder"
    speaks: bool = True

    def recipe(self, given: Recipe) -> Recipe:
        """Uses longer texts, because it needs the prompt as well, and smaller steps."""
        return replace(given, rate=given.rate * 0.5, length=320, before=160)

    def check(self, target: TargetFile, rows: int) -> None:
        """See `Kind`."""
        from edgecs_convert.distill.decoder import DecoderShape, check

        check(target, DecoderShape(self.layers, self.width))

    def begin(self, target: TargetFile, vocabulary: Vocabulary, seed: int) -> Any:
        """See `Kind`."""
        from edgecs_convert.distill.decoder import DecoderShape, begin

        shape = DecoderShape(self.layers, self.width)
        return begin(target, vocabulary.ids, shape, seed)

    def export(
        self, out: Path, student: Any, vocabulary: Vocabulary, about: About
    ) -> None:
        """See `Kind`."""
        export_decoder(out, student, about)


NAMES = ("head", "decoder")


def kind_of(name: str, *, layers: int = 2, width: int | None = None) -> Kind:
    """The kind with this name. Raises ConfigError."""
    if name == "head":
        return HeadKind()
    if name == "decoder":
        return DecoderKind(layers, width)
    raise ConfigError(
        f"unknown kind of drafter {name!r}: give one of {', '.join(NAMES)}"
    )
