"""Options shared by several commands."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click

from edgecs.decoding.accept import Accept
from edgecs.decoding.overlap import Overlap
from edgecs.decoding.tiers import Exact
from edgecs.drafters.copies import LONGEST
from edgecs.engines.load_options import (
    MOST_CELLS,
    MOST_THREADS,
    KernelChoice,
    KVType,
    LoadOptions,
)
from edgecs.sampling.cascade_rules import RuleName
from edgecs_cli.options.kinds import AnyFinite, Finite, GpuLayersType, Whole
from edgecs_cli.options.references import Reference
from edgecs_cli.options.sections import F, Section, option, with_options

_hardware = partial(option, Section.HARDWARE)
_speculation = partial(option, Section.SPECULATION)


def model_options(command: F) -> F:
    """Options for the model, and how it is loaded."""
    model = click.option(
        "-m",
        "--model",
        required=True,
        type=Reference(),
        metavar="MODEL",
        help="A name (`edgecs models search`), a .gguf file, or user/repo[:quant].",
    )
    return model(hardware_options(command))


def hardware_options(command: F) -> F:
    """Options for how a model is loaded."""
    options = [
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
            "--rpc",
            default="",
            metavar="HOST:PORT,...",
            help="Put layers of the model on these workers (`edgecs worker`) instead "
            "of this machine; drafters stay here. Connections are not encrypted.",
        ),
        _hardware(
            "-t",
            "--threads",
            type=Whole(0, MOST_THREADS),
            default=0,
            help="CPU threads; 0: one per physical core.",
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
            help="Type of the V cache; quantised types need flash attention.",
        ),
        _hardware(
            "--swa-full/--no-swa-full",
            default=False,
            help="Keep all cells of sliding-window layers: more memory, but every "
            "prefix can be continued and drafts can be bit-exact.",
        ),
        _hardware(
            "--repack/--no-repack",
            default=True,
            help="Repack weights for llama.cpp's faster CPU kernels.",
        ),
        _hardware(
            "--kernels",
            type=click.Choice(get_args(KernelChoice)),
            default="auto",
            show_default=True,
            help="CPU kernels. auto: edgecs's where they apply and nothing is "
            "offloaded, else llama.cpp's. own: edgecs's, or an error. The others: "
            "edgecs's for this instruction set.",
        ),
        _hardware("--mmap/--no-mmap", default=True, help="Memory-map the model file."),
        _hardware("--mlock/--no-mlock", default=False, help="Keep the weights in RAM."),
        _hardware(
            "--huge-pages/--no-huge-pages",
            default=True,
            help="Request huge pages (Linux); memory-mapped weights cannot have them.",
        ),
        _hardware(
            "--cpu-strict/--no-cpu-strict",
            default=True,
            help="Pin each thread to its own core if there are as many cores as "
            "threads (Linux); other programs then slow decoding less.",
        ),
    ]
    return with_options(command, options)


def server_option(command: F) -> F:
    """The option for a running server."""
    decorate = click.option(
        "--server",
        default="auto",
        show_default=True,
        metavar="auto|off|URL",
        help="auto: use a running `edgecs serve` of yours with this model and "
        "settings; off: load the model; URL: use this server (its key is in "
        "EDGECS_API_KEY).",
    )
    return decorate(command)


def common_options(command: F) -> F:
    """Context, network and output options; they follow a command's own options."""
    options = [
        click.option(
            "-c",
            "--ctx-size",
            "n_ctx",
            type=Whole(0, MOST_CELLS),
            default=0,
            help="Context in tokens; 0: the model's maximum, as far as memory allows.",
        ),
        click.option("--offline", is_flag=True, help="Never use the network."),
        click.option(
            "-q", "--quiet", is_flag=True, help="Print nothing but the result."
        ),
        click.option(
            "-v", "--verbose", is_flag=True, help="Print details and llama.cpp's log."
        ),
    ]
    return with_options(command, options)


def drafter_options(command: F) -> F:
    """Options for drafters, their hardware, and exactness."""
    options = [
        _speculation(
            "--draft",
            "drafts",
            multiple=True,
            type=Reference(drafters=True),
            metavar="MODEL",
            help="A drafter: a model as for -m, a GGUF made for it (EAGLE-3, DFlash), "
            "or the folder of an ONNX drafter. May be repeated, largest first: each "
            "drafter reviews those after it. Max-Gram and bigrams come last. head: the "
            "MTP head in the model's own file. auto, the default: that head if there "
            "is one, else the model's bundled drafter if it pays. none: neither.",
        ),
        _hardware(
            "-td",
            "--threads-draft",
            "threads_draft",
            type=Whole(0, MOST_THREADS),
            default=0,
            help="Threads of drafters; 0: one for ONNX, the value of -t for GGUF, and "
            "a quarter of the cores with --overlap on.",
        ),
        _speculation(
            "-cd",
            "--ctx-size-draft",
            "ctx_draft",
            type=Whole(0, MOST_CELLS),
            default=0,
            help="Context in tokens of drafters that are models. Of a longer text they "
            "read an excerpt: its beginning, what fits the question, and its end. "
            "0: the model's context, or what the drafter was trained for.",
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
            help="strict: only batch widths with logits bit-identical to plain "
            "decoding; numeric: any width; auto: strict where that costs less than "
            "3 % of the speed.",
        ),
    ]
    return with_options(command, options)


def overlap_option(command: F) -> F:
    """The option for drafts that are made while the target computes."""
    decorate = _speculation(
        "--overlap",
        type=click.Choice(get_args(Overlap)),
        default="auto",
        show_default=True,
        help="Whether a drafter (--draft, not a head) goes on while the model verifies "
        "its last draft, which pays on two devices, or with cores to spare; the answer "
        "is the same. auto: where `edgecs tune` found that it pays. on: the drafter "
        "has a quarter of the cores (or -td), the model the rest (or -t).",
    )
    return decorate(command)


def schedule_options(command: F) -> F:
    """Options for how much is drafted."""
    options = [
        overlap_option,
        _speculation(
            "--no-spec",
            is_flag=True,
            help="Plain decoding without drafts.",
        ),
        _speculation(
            "--draft-max",
            type=Whole(0, LoadOptions.max_draft),
            metavar="K",
            help="Maximum draft length in tokens; 0: no speculation.",
        ),
        _speculation(
            "--draft-leaves",
            "leaves",
            type=Whole(1, LoadOptions.max_draft),
            default=1,
            show_default=True,
            metavar="N",
            help="Maximum number of branches of a draft. Above 1 drafts can be trees, "
            "which pays on hardware whose calls of eight tokens take little more time "
            "than those of one; --exact auto is then numeric.",
        ),
        _speculation(
            "--mag-min-match",
            "min_match",
            type=Whole(1, LONGEST),
            default=1,
            show_default=True,
            metavar="N",
            help="Minimum number of matching tokens for a Max-Gram draft.",
        ),
        _speculation(
            "--k-matrix",
            metavar="ROWS",
            help="A fixed schedule instead of the planner: tokens per drafter, as in "
            '"5,10;0,10". Row 0 applies when the target reviews, row 1 when the first '
            "drafter reviews.",
        ),
        _speculation(
            "--lenience",
            type=Finite(1),
            default=1.0,
            show_default=True,
            help="How readily drafters accept a cheaper drafter's tokens; 1: only "
            "their own choices. The target is never lenient.",
        ),
        _speculation(
            "--log-answers",
            "log_answers",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="FOLDER",
            help="Save answers here, with the model's top logits and hidden states, "
            "for `edgecs distill --resume-from-log`. They never leave this machine.",
        ),
    ]
    return with_options(command, options)


def cascade_options(command: F) -> F:
    """Options for answers from a mixture of a small model and the target."""
    options = [
        _speculation(
            "--cascade-rule",
            "cascade_rule",
            type=click.Choice(get_args(RuleName)),
            help="Leave positions to the first drafter where this rule of speculative "
            "cascades says so; needs --draft and --alpha. The answer is NOT that of "
            "the model alone.",
        ),
        _speculation(
            "--alpha",
            type=AnyFinite(),
            metavar="A",
            help="For --cascade-rule: the larger, the more is left to the drafter; "
            "chow, v3: 0 to 1; diff, v1, v2: -1 to 1; opt: any number.",
        ),
        _speculation(
            "--accept",
            type=click.Choice(get_args(Accept)),
            default="shared",
            show_default=True,
            help="How drafted tokens are accepted. shared: the answer has the tokens "
            "of one without drafts. rejection, block: speculative sampling by tokens "
            "or by blocks, which accepts more above temperature 0; the same "
            "distribution but other tokens, and drafts of a fixed length.",
        ),
    ]
    return with_options(command, options)


def load_options(values: dict[str, Any]) -> LoadOptions:
    """Takes the load options out of a command's parameters."""
    names = [f.name for f in fields(LoadOptions) if f.name in values]
    return LoadOptions(**{name: values[name] for name in names})


def draft_load_options(values: dict[str, Any]) -> LoadOptions:
    """Load options of drafters: the target's unless set separately."""
    layers, threads = values["layers_draft"], values["threads_draft"]
    shared = 0 if values.get("overlap") == "on" else values["threads"]
    return replace(
        load_options(values),
        n_ctx=values["ctx_draft"],
        n_gpu_layers=layers,
        rpc="",
        threads=threads or shared,
    )
