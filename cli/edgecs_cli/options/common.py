"""Options of several commands, and the sections that a help text has them in."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import click

from edgecs.core.reading import regular_size
from edgecs.decoding.exactness import Exact
from edgecs.drafters.copies import LONGEST
from edgecs.engines.load_options import (
    MOST_CELLS,
    MOST_THREADS,
    GpuLayers,
    KernelChoice,
    KVType,
    LoadOptions,
)
from edgecs_cli.options.references import Reference

F = TypeVar("F", bound=Callable[..., Any])


class Section(StrEnum):
    """A heading in a help text; they come in this order."""

    BASICS = "Basics"
    RESULTS = "Results"
    TRAINING = "Training"
    SAMPLING = "Sampling"
    SPECULATION = "Speculation"
    HARDWARE = "Hardware"


class _Option(click.Option):
    """An option that says in which section it belongs."""

    def __init__(self, *args: Any, section: Section, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


def option(section: Section, *flags: str, **settings: Any) -> Callable[[F], F]:
    """`click.option` for another section than the first."""
    return click.option(*flags, cls=_Option, section=section, **settings)


_hardware = partial(option, Section.HARDWARE)
_speculation = partial(option, Section.SPECULATION)


class Sectioned(click.Command):
    """A command whose help has sections; what says nothing is in the first one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Says how a model is given to those who give it without -m."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if "unexpected extra argument" in error.message and any(
                "-m" in param.opts for param in self.params
            ):
                text = f"{error.message}; a model is given with -m"
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
    """A group of commands that has options of its own."""


class GpuLayersType(click.ParamType[GpuLayers]):
    """A number of layers, `auto` or `all`."""

    name = "N|auto|all"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> GpuLayers:
        """Checks a value of -ngl."""
        if value in ("auto", "all") or isinstance(value, int):
            return value  # type: ignore[no-any-return]
        text = str(value)
        if not (text.isascii() and text.isdigit()):
            self.fail(f"{value!r} is not a number >= 0, 'auto' or 'all'", param, ctx)
        return int(text)


class Finite(click.FloatRange):
    """A number in a range; `nan`, which fits every range, and `inf` are refused."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Checks a value."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


RESULT, PAGE = (b'{"format": "edgecs', b'{\n  "format": "edgecs'), b"<!DOCTYPE html>"
"""How what `edgecs bench` writes begins."""
_HEAD = 64  # bytes that tell
_OTHERS = "the file exists, and edgecs did not write it"


class OutputFile(click.Path):
    """A file to write, refused at once if it could not be written at the end.

    in_place: a file that is there is written to, not replaced by a new one. begins:
    how files begin that may be replaced; any other file is refused. Nothing is created
    to find out.
    """

    def __init__(self, *begins: bytes, in_place: bool = False) -> None:
        super().__init__(path_type=Path, readable=False)
        self.name = "file"
        self._begins, self._in_place = begins, in_place

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Checks a place."""
        path = cast(Path, super().convert(value, param, ctx))
        try:
            self._check(path)
        except OSError as error:
            why = f"{path} cannot be written: {error.strerror}"
            self.fail(f"{why}; give another place", param, ctx)
        return path

    def _check(self, path: Path) -> None:
        """Raises OSError."""
        folder, there = path.parent, path.exists()
        folder.stat()
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if there and regular_size(path) and self._begins:
            with path.open("rb") as file:
                if not file.read(_HEAD).startswith(self._begins):
                    raise FileExistsError(errno.EEXIST, _OTHERS)
        if not os.access(path if there and self._in_place else folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def model_options(command: F) -> F:
    """The options that say which model is loaded, and how."""
    options = [
        click.option(
            "-m",
            "--model",
            required=True,
            type=Reference(),
            metavar="MODEL",
            help="A name (`edgecs models list`), a .gguf file, or user/repo[:quant].",
        ),
        _hardware(
            "-ngl",
            "--gpu-layers",
            "n_gpu_layers",
            type=GpuLayersType(),
            default="auto",
            show_default=True,
            help="Layers on the GPU; auto: as many as fit.",
        ),
        _hardware(
            "-t",
            "--threads",
            type=click.IntRange(0, MOST_THREADS),
            default=0,
            help="CPU threads; 0: one for each physical core.",
        ),
        _hardware(
            "-fa",
            "--flash-attn",
            "flash_attention",
            type=click.Choice(["auto", "on", "off"]),
            default="auto",
            show_default=True,
            help="Flash attention.",
        ),
        _hardware(
            "-ctk",
            "--cache-type-k",
            "type_k",
            type=click.Choice(get_args(KVType)),
            default="f16",
            show_default=True,
            help="Type of the K cache.",
        ),
        _hardware(
            "-ctv",
            "--cache-type-v",
            "type_v",
            type=click.Choice(get_args(KVType)),
            default="f16",
            show_default=True,
            help="Type of the V cache; quantised ones need flash attention.",
        ),
        _hardware(
            "--repack/--no-repack",
            default=True,
            help="Lay out weights for faster kernels of llama.cpp's.",
        ),
        _hardware(
            "--kernels",
            type=click.Choice(get_args(KernelChoice)),
            default="auto",
            show_default=True,
            help="Who computes on the CPU. auto: edgecs, where it can and nothing is "
            "offloaded, else llama.cpp. own: edgecs, or an error. The others: edgecs "
            "with these instructions.",
        ),
        _hardware(
            "--mmap/--no-mmap", default=True, help="Map the file instead of reading it."
        ),
        _hardware("--mlock/--no-mlock", default=False, help="Keep the weights in RAM."),
        _hardware(
            "--huge-pages/--no-huge-pages",
            default=True,
            help="Ask the system for huge pages, which weights that are mapped from a "
            "file cannot have (Linux).",
        ),
        _hardware(
            "--cpu-strict/--no-cpu-strict",
            default=True,
            help="Keep threads on cores of their own where there is one for each and "
            "no more (Linux): another program that computes then costs less.",
        ),
    ]
    return with_options(command, options)


def common_options(command: F) -> F:
    """Context, network and messages: they come after what a command has of its own."""
    options = [
        click.option(
            "-c",
            "--ctx-size",
            "n_ctx",
            type=click.IntRange(0, MOST_CELLS),
            default=0,
            help="Context in tokens; 0: the model's own, as far as memory allows.",
        ),
        click.option("--offline", is_flag=True, help="Never use the network."),
        click.option(
            "-q", "--quiet", is_flag=True, help="The answer and nothing else."
        ),
        click.option(
            "-v", "--verbose", is_flag=True, help="Say more, with llama.cpp's log."
        ),
    ]
    return with_options(command, options)


def drafter_options(command: F) -> F:
    """The options that say who may draft, where, and which widths they may use."""
    options = [
        _speculation(
            "--draft",
            "drafts",
            multiple=True,
            type=Reference(drafters=True),
            metavar="MODEL",
            help="A drafter: a model as for -m, or the folder of an ONNX drafter. May "
            "be repeated, the largest first: each one reviews those after it. Max-Gram "
            "always comes last. none: not even the one that comes with a model.",
        ),
        _hardware(
            "-td",
            "--threads-draft",
            "threads_draft",
            type=click.IntRange(0, MOST_THREADS),
            default=0,
            help="Threads of drafters; 0: one for ONNX, those of -t for GGUF.",
        ),
        _hardware(
            "-ngld",
            "--gpu-layers-draft",
            "layers_draft",
            type=GpuLayersType(),
            default="auto",
            show_default=True,
            help="Layers of GGUF drafters on the GPU.",
        ),
        _speculation(
            "--exact",
            type=click.Choice(get_args(Exact)),
            default="auto",
            show_default=True,
            help="strict: only widths whose bits are those of plain decoding; numeric: "
            "the batch's bits; auto: strict where that costs less than 3 % of the "
            "speed.",
        ),
    ]
    return with_options(command, options)


def schedule_options(command: F) -> F:
    """The options that say how much is drafted."""
    options = [
        _speculation(
            "--no-spec",
            is_flag=True,
            help="Plain decoding, no drafts.",
        ),
        _speculation(
            "--draft-max",
            type=click.IntRange(0, LoadOptions.max_draft),
            metavar="K",
            help="Longest draft in tokens; 0: no speculation.",
        ),
        _speculation(
            "--mag-min-match",
            "min_match",
            type=click.IntRange(1, LONGEST),
            default=1,
            show_default=True,
            metavar="N",
            help="Max-Gram drafts only after N tokens that occurred before.",
        ),
        _speculation(
            "--k-matrix",
            metavar="ROWS",
            help="A fixed schedule instead of the planner: how many tokens each "
            'drafter writes, as in "5,10;0,10": row 0 while the target reviews, row 1 '
            "while the first drafter reviews.",
        ),
        _speculation(
            "--lenience",
            type=Finite(1),
            default=1.0,
            show_default=True,
            help="How far drafters let a cheaper one's tokens stand that they would "
            "not have chosen. The target never does.",
        ),
        _speculation(
            "--log-answers",
            "log_answers",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="FOLDER",
            help="Keep answers here, with the model's best logits and hidden states, "
            "for `edgecs distill --resume-from-log`. They never leave this machine.",
        ),
    ]
    return with_options(command, options)


def with_options(command: F, options: Sequence[Callable[[F], F]]) -> F:
    """A command with options in the order in which its help shows them."""
    for decorate in reversed(options):
        command = decorate(command)
    return command


def load_options(values: dict[str, Any]) -> LoadOptions:
    """Takes the load options out of a command's parameters."""
    names = [f.name for f in fields(LoadOptions) if f.name in values]
    return LoadOptions(**{name: values[name] for name in names})


def draft_load_options(values: dict[str, Any]) -> LoadOptions:
    """How a GGUF drafter is loaded: like the target where nothing else is said."""
    layers, threads = values["layers_draft"], values["threads_draft"]
    return replace(
        load_options(values),
        n_ctx=0,
        n_gpu_layers=layers,
        threads=threads or values["threads"],
    )
