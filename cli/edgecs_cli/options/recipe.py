"""A command's options as typed values: the recipe, and how it was called."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from edgecs.decoding.kmatrix import KMatrix
from edgecs.sampling.cascade_rules import CascadeRule
from edgecs.sampling.settings import Sampling
from edgecs_cli.console import say
from edgecs_cli.options.common import draft_load_options, load_options
from edgecs_cli.options.remembering import wanted_store
from edgecs_cli.options.sampling import read_grammar, read_sampling
from edgecs_cli.options.shared import progress_bars

if TYPE_CHECKING:
    # A command that uses a running server starts faster without these.
    from _typeshed import DataclassInstance

    from edgecs.runtime.builder import Files
    from edgecs.runtime.folders import Folders
    from edgecs.runtime.recipe import Recipe
    from edgecs.runtime.target import Reports

_NO_DRAFTER = "none"  # value of --draft that disables the usual drafter too
_USUAL = "auto"  # value of --draft that means no value
T = TypeVar("T", bound="DataclassInstance")


def taken(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass filled from the options named like its fields."""
    return kind(**{field.name: values[field.name] for field in fields(kind)})


@dataclass(frozen=True)
class Call:
    """Options of a command that loads a model, besides its recipe."""

    quiet: bool
    verbose: bool
    offline: bool

    @cached_property
    def folders(self) -> Folders:
        """The user's folders."""
        from edgecs.runtime.folders import Folders

        return Folders(offline=self.offline)

    @property
    def reports(self) -> Reports:
        """Reporters that write to stderr; progress only on a terminal."""
        from edgecs.runtime.target import Reports

        progress = self.say if sys.stderr.isatty() else lambda text: None
        return Reports(self.say, progress, once=self.say)

    def say(self, text: str) -> None:
        """Prints a dim line to stderr, unless --quiet is given."""
        say(text, quiet=self.quiet)

    def note(self, text: str) -> None:
        """Prints a dim line to stderr if --verbose is given."""
        say(text, quiet=self.quiet or not self.verbose)

    def find(self, recipe: Recipe) -> Files:
        """The files of a recipe; downloads missing ones with progress bars."""
        from edgecs.runtime.builder import find_files

        with progress_bars() as progress:
            return find_files(recipe, self.folders, progress)


def find_model(model: str, *, offline: bool) -> Path:
    """The file of a model; downloads it with a progress bar if missing."""
    from edgecs.runtime.folders import Folders

    with progress_bars() as progress:
        return Folders(offline=offline).store.path(model, progress)


def read_recipe(values: dict[str, Any]) -> Recipe:
    """The recipe that a command's options describe.

    Invalid settings are refused here, before a download that may take minutes. Raises
    ConfigError, UsageError.
    """
    from edgecs.runtime.recipe import Recipe

    sampled = "temperature" in values
    given = tuple(name for name in values.get("drafts", ()) if name != _USUAL)
    names = tuple(name for name in given if name != _NO_DRAFTER)
    drafting = "threads_draft" in values
    return Recipe(
        values["model"],
        load_options(values),
        drafts=names if given else None,
        draft_options=draft_load_options(values) if drafting else None,
        speculate=not values.get("no_spec"),
        matrix=_matrix(values),
        longest=values.get("draft_max"),
        min_match=values.get("min_match", Recipe.min_match),
        lenience=values.get("lenience", Recipe.lenience),
        cascade=_cascade(values),
        accept=values.get("accept", Recipe.accept),
        overlap=values.get("overlap", Recipe.overlap),
        exact=values.get("exact", Recipe.exact),
        may_change_cache=not _given("type_k", "type_v"),
        sampling=read_sampling(values) if sampled else Sampling(),
        grammar=read_grammar(values) if sampled else None,
        store=wanted_store(values),
    )


def _matrix(values: dict[str, Any]) -> KMatrix | None:
    if values.get("k_matrix") is None:
        return None
    if values["draft_max"] is not None:
        raise click.UsageError("--k-matrix and --draft-max are mutually exclusive")
    return KMatrix.parse(values["k_matrix"])


def _cascade(values: dict[str, Any]) -> CascadeRule | None:
    name, alpha = values.get("cascade_rule"), values.get("alpha")
    if name is None and alpha is None:
        return None
    if name is None or alpha is None:
        raise click.UsageError(
            "--cascade-rule and --alpha belong together: give both or neither"
        )
    if values.get("log_answers"):
        raise click.UsageError(
            "--log-answers saves answers of the model alone: leave --cascade-rule out"
        )
    return CascadeRule(name, alpha)


def _given(*names: str) -> bool:
    """Whether any of these options was set."""
    source = click.get_current_context().get_parameter_source
    return any(source(name) is not ParameterSource.DEFAULT for name in names)
