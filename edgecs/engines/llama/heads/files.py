"""The kinds of heads that have a file of their own."""

from __future__ import annotations

from pathlib import Path

from edgecs.engines.llama.heads.assistant import Gemma4Assistant
from edgecs.engines.llama.heads.dflash import DFlash
from edgecs.engines.llama.heads.eagle3 import Eagle3
from edgecs.engines.llama.heads.fit import Shape, check_assistant, check_fit, header_of
from edgecs.engines.llama.heads.mtp import WITH_GRAPHS

HEAD_FILES: dict[str, type[Eagle3] | type[DFlash] | type[Gemma4Assistant]] = {
    "eagle3": Eagle3,
    "dflash": DFlash,
    "gemma4-assistant": Gemma4Assistant,
}
"""By architecture, as in `model.HEADS`."""


def check_files(drafter: Path, target: Path) -> None:
    """Raise ModelError if a head's file does not fit a target's; loads nothing."""
    header, theirs = header_of(drafter), header_of(target)
    shape = Shape.of_file(target, theirs)
    if header.architecture == "gemma4-assistant":
        check_assistant(drafter, header, shape, theirs)
        return
    kind = "EAGLE-3" if header.architecture == "eagle3" else "DFlash"
    check_fit(kind, drafter, header, shape)


def has_own_head(target: Path) -> bool:
    """Whether a model's file has an MTP head that can be run; loads nothing."""
    header = header_of(target)
    count = header.own("nextn_predict_layers")
    return bool(count) and header.architecture in WITH_GRAPHS
