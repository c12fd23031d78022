"""Load heads: drafters of llama.cpp that read the hidden states of their target."""

from __future__ import annotations

import math
import re
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgecs.calibrate.profile import fingerprint
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ModelError
from edgecs.hub.compatibility import check_same, vocabulary_hash
from edgecs.runtime.loader import Loaded, LoadedDrafter
from edgecs.runtime.opening import (
    kernels_for,
    options_that_compute,
    with_layers_that_fit,
)
from edgecs.runtime.recipe import HEAD

if TYPE_CHECKING:
    from edgecs.engines.llama.heads.assistant import Gemma4Assistant
    from edgecs.engines.llama.heads.dflash import DFlash
    from edgecs.engines.llama.heads.eagle3 import Eagle3
    from edgecs.engines.llama.model import LlamaModel


def load_own_head(target: Loaded, options: LoadOptions) -> LoadedDrafter:
    """The MTP head in the target's own file, under the name `head`.

    Raises ModelError if there is none, or llama.cpp cannot compute it, OutOfMemory,
    Cancelled.
    """
    from edgecs.engines.llama.heads.mtp import MtpHead, own_heads
    from edgecs.engines.llama.model_trial import refuse_fatal

    model, path = target.model, target.model.path
    if own_heads(model):
        refuse_fatal(path, target.findings, target.cancel, path)
    threads = options.threads or target.target.threads
    strict = options.cpu_strict

    def opened(sequence: int) -> MtpHead:
        return MtpHead(
            target.target,
            target.cancel,
            threads=threads,
            strict=strict,
            sequence=sequence,
        )

    head = opened(0)
    count = f"{head.heads} MTP heads" if head.heads > 1 else "MTP head"
    about = f"{count} in the model's file, {threads} CPU threads"
    mark = f"{fingerprint(path)}-{HEAD}"
    return LoadedDrafter(
        HEAD,
        head,
        about,
        _weights(path, model),
        head.close,
        mark,
        beside=opened,
        size=head.conversation_size,
    )


def _weights(path: Path, model: LlamaModel) -> int | None:
    """The number of weights of the MTP heads; None: not known."""
    from edgecs.engines.llama.heads.fit import header_of

    with suppress(ModelError):
        return sum(
            math.prod(tensor.shape)
            for name, tensor in header_of(path).tensors.items()
            if (block := re.match(r"blk\.(\d{1,9})\.", name))
            and int(block[1]) >= model.layers
        )
    return None


def load_head(
    kind: str, path: Path, target: Loaded, options: LoadOptions
) -> LoadedDrafter:
    """Load a head for `target` from a file of its own.

    kind: its architecture, one of `model.HEADS`. Raises ModelError if it does not fit
    the target, OutOfMemory, Cancelled.
    """
    from edgecs.engines.llama.heads.files import HEAD_FILES
    from edgecs.engines.llama.model import LlamaModel, check_file
    from edgecs.engines.llama.model_trial import refuse_fatal

    check_file(path)
    refuse_fatal(path, target.findings, target.cancel, target.model.path)

    def open_with(options: LoadOptions, note: str | None) -> LoadedDrafter:
        kernels, _ = kernels_for(options, target.findings, lambda text: None)
        if kernels is None:
            options, _ = options_that_compute(options, target.findings)
        with ExitStack() as undo:
            model = LlamaModel(
                path,
                options,
                target.cancel,
                kernels,
                head=True,
                beside_gpu=bool(target.model.offload.layers),
            )
            undo.callback(model.close)
            theirs = model.vocabulary.pieces()
            check_same(
                target.model.vocabulary.pieces(),
                vocabulary_hash(theirs),
                theirs,
                target_name=target.model.path.name,
                drafter_name=path.name,
            )
            threads = options.threads or target.target.threads

            def opened(sequence: int) -> Eagle3 | DFlash | Gemma4Assistant:
                return HEAD_FILES[kind](
                    model,
                    target.target,
                    target.cancel,
                    threads=threads,
                    strict=options.cpu_strict,
                    sequence=sequence,
                    owns=not sequence,
                )

            head = opened(0)
            undo.pop_all()
        where = model.offload.describe()
        about = f"{head.kind}, {model.file_type}, {where}{threads} CPU threads"
        return LoadedDrafter(
            path.stem,
            head,
            about,
            model.parameters,
            head.close,
            fingerprint(path),
            beside=opened,
            size=head.conversation_size,
        )

    return with_layers_that_fit(path, replace(options, n_ctx=0), open_with)
