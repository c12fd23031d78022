"""Open a GGUF file with the options that this machine and its memory allow."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from edgecs.engines.host import usable_cores, usable_processors
from edgecs.engines.load_options import LoadOptions
from edgecs.engines.offload import fewer_layers
from edgecs.errors import ConfigError, OutOfMemory

if TYPE_CHECKING:
    from edgecs.engines.llama.kernels import KernelSet
    from edgecs.engines.llama.language_model import LlamaLM
    from edgecs.engines.llama.model import LlamaModel

# measured: about a second for each GB on two cores (docs/concepts.md).
_LARGE = 2 << 30  # bytes of weights that take more than a second to lay out
T = TypeVar("T")


def options_that_compute(
    options: LoadOptions, findings: Path | None
) -> tuple[LoadOptions, str | None]:
    """Options that do not crash this build, and a warning if they were changed."""
    from edgecs.engines.llama import library

    if not (options.repack and library.has_amx()):
        return options, None
    from edgecs.engines import trial
    from edgecs.engines.llama import amx

    found = amx.finding(findings)
    if found == trial.WORKS:
        return options, None
    return replace(options, repack=False), amx.warning(found)


def no_gpu(options: LoadOptions) -> str | None:
    """A warning if GPU layers were requested and there is no GPU and no worker."""
    from edgecs.engines.llama import library

    layers = options.n_gpu_layers
    if options.rpc or layers in ("auto", 0) or library.supports_offload():
        return None
    return (
        f"no layer is offloaded (-ngl {layers}): this build of llama.cpp finds no GPU; "
        "`edgecs doctor` lists the devices"
    )


def many_threads(threads: int) -> str | None:
    """A warning if there are more threads than processors, else None."""
    processors = usable_processors()
    if threads <= processors:
        return None
    return (
        f"{threads} threads on {processors} processors wait for each other: "
        f"-t {usable_cores()} is faster"
    )


def with_layers_that_fit(
    path: Path, options: LoadOptions, open_with: Callable[[LoadOptions, str | None], T]
) -> T:
    """Open with the requested number of GPU layers, or as many as memory allows."""
    from edgecs.engines.llama.layers import automatic_layers

    if options.rpc and options.n_gpu_layers == 0:
        raise ConfigError(
            "no layer goes to the workers of --rpc with -ngl 0: leave one of them out"
        )
    if options.n_gpu_layers != "auto":
        return open_with(options, None)
    layers, n_ctx, note = automatic_layers(path, options)
    if options.rpc and not layers:
        raise OutOfMemory(
            f"no layer fits the memory of the workers ({note}): give workers with more "
            "(a GiB of each stays free), or a number of layers with -ngl"
        )
    while True:
        try:
            return open_with(replace(options, n_gpu_layers=layers, n_ctx=n_ctx), note)
        except OutOfMemory:
            least = 1 if options.rpc else 0  # without layers there, no worker is used
            if layers <= least:
                raise
            layers = max(least, fewer_layers(layers))
            note = f"{layers} GPU layers, as an allocation failed with more"


class Opened(NamedTuple):
    """A loaded model, and the options that worked."""

    model: LlamaModel
    scorer: LlamaLM
    options: LoadOptions  # the options in use
    warning: str | None
    no_kernels: str | None  # why edgecs' kernels are not used by default


def open_model(
    path: Path,
    options: LoadOptions,
    cancel: threading.Event,
    findings: Path | None,
    drafts_for: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Opened:
    """Load a GGUF with edgecs' kernels where they can be used, else with llama.cpp's.

    findings, say: see `load`. drafts_for: the vocabulary size of the target that the
    model drafts for; None: it is a target. Raises ConfigError, ModelError, OutOfMemory,
    Cancelled.
    """
    from edgecs.engines.llama.language_model import LlamaLM
    from edgecs.engines.llama.model import LlamaModel, check_file
    from edgecs.engines.llama.model_trial import refuse_fatal

    check_file(path)
    refuse_fatal(path, findings, cancel)

    def opened(
        options: LoadOptions,
        kernels: KernelSet | None,
        warning: str | None,
        why: str | None,
    ) -> Opened:
        with ExitStack() as undo:
            model = LlamaModel(path, options, cancel, kernels)
            undo.callback(model.close)
            scorer = LlamaLM(model, options, cancel, drafts_for=drafts_for)
            undo.pop_all()
        return Opened(model, scorer, options, warning, why)

    kernels, why = kernels_for(options, findings, say, cancel)
    if kernels:
        if path.stat().st_size > _LARGE:
            say(f"laying out weights for {kernels.name}")
        ours = replace(options, kernels=kernels.name)
        try:
            return opened(ours, kernels, None, None)
        except OutOfMemory as error:
            if options.kernels != "auto":
                raise
            why = str(error)
    options, warning = options_that_compute(options, findings)
    return opened(replace(options, kernels="llama"), None, warning, why)


def kernels_for(
    options: LoadOptions,
    findings: Path | None,
    say: Callable[[str], None],
    cancel: threading.Event | None = None,
) -> tuple[KernelSet | None, str | None]:
    """The chosen kernels, see `choose`; none together with a GPU, a worker or BLAS.

    With layers on a GPU they would cost more than they gain, and they compute in this
    process only, not in a worker. BLAS computes parts of a
    graph by itself, and cannot compute edgecs' nodes in them.
    """
    from edgecs.engines.llama import library
    from edgecs.engines.llama.kernel_choice import choose

    if options.rpc:
        why, remedy = (
            "layers are on other hosts",
            "leave --rpc out, or give --kernels auto",
        )
    elif options.n_gpu_layers != 0 and library.supports_offload():
        why, remedy = "layers are on the GPU", "give -ngl 0, or --kernels auto"
    elif beside := library.accelerators():
        why, remedy = f"{beside[0]} computes parts of the graph", "use --kernels auto"
    else:
        return choose(options.kernels, findings, say, cancel)
    if options.kernels in ("auto", "llama"):
        return None, why
    raise ConfigError(
        f"--kernels {options.kernels} computes on the CPU, and {why}: {remedy}"
    )
