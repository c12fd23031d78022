"""Options with headings in the help text of their command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Section(StrEnum):
    """Headings of a help text, in order."""

    BASICS = "Basics"
    RESULTS = "Results"
    TRAINING = "Training"
    SAMPLING = "Sampling"
    SPECULATION = "Speculation"
    HARDWARE = "Hardware"


class _Option(click.Option):
    """An option with a section of the help text."""

    def __init__(self, *args: Any, section: Section, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


def option(section: Section, *flags: str, **settings: Any) -> Callable[[F], F]:
    """`click.option` with a section of the help text."""
    return click.option(*flags, cls=_Option, section=section, **settings)


class Sectioned(click.Command):
    """A command whose help has sections; options without one go into the first."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Adds a hint to use -m where a model is given as an argument."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if "unexpected extra argument" in error.message and any(
                "-m" in param.opts for param in self.params
            ):
                text = f"{error.message}; give the model with -m"
                raise click.UsageError(text, ctx) from error
            raise

    def format_options(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Writes the sections, and the commands of a group."""
        rows: dict[Section, list[tuple[str, str]]] = {name: [] for name in Section}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record and isinstance(param, click.Option):
                rows[getattr(param, "section", Section.BASICS)].append(record)
        for section, records in rows.items():
            if records:
                with formatter.section(section):
                    formatter.write_dl(records)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)


class SectionedGroup(Sectioned, click.Group):
    """A command group with options of its own."""


def with_options(command: F, options: Sequence[Callable[[F], F]]) -> F:
    """Adds options to a command, in the order of its help."""
    for decorate in reversed(options):
        command = decorate(command)
    return command
