"""The kinds of heads that have a file of their own."""

from __future__ import annotations

from pathlib import Path

from edgecs.engines.llama.heads.assistant import Gemma4Assistant
from edgecs.engines.llama.heads.dflash import DFlash
from edgecs.engines.llama.heads.eagle3 import Eagle3
from edgecs.engines.llama.heads.fit import Shape, check_assistant, check_fit, header_of
from edgecs.engines.llama.heads.mtp import WITH_GRAPHS
from edgecs.engines.llama.model import HEADS
from edgecs.errors import ModelError

HEAD_FILES: dict[str, type[Eagle3] | type[DFlash] | type[Gemma4Assistant]] = {
    "eagle3": Eagle3,
    "dflash": DFlash,
    "gemma4-assistant": Gemma4Assistant,
}
"""By architecture; others of `model.HEADS` are not run yet."""


def check_files(drafter: Path, target: Path) -> None:
    """Raise ModelError if a head's file does not fit a target's; loads nothing."""
    header, theirs = header_of(drafter), header_of(target)
    if header.architecture not in HEAD_FILES:
        raise ModelError(not_run_yet(drafter, header.architecture))
    shape = Shape.of_file(target, theirs)
    if header.architecture == "gemma4-assistant":
        check_assistant(drafter, header, shape, theirs)
        return
    kind = "EAGLE-3" if header.architecture == "eagle3" else "DFlash"
    check_fit(kind, drafter, header, shape)


def not_run_yet(path: Path, architecture: str) -> str:
    """The message for a kind of head that edgecs does not run."""
    return (
        f"{path.name} is {HEADS[architecture]}, which edgecs does not run yet: use "
        "another drafter, or --draft none"
    )


def has_own_head(target: Path) -> bool:
    """Whether a model's file has an MTP head that can be run; loads nothing."""
    header = header_of(target)
    count = header.own("nextn_predict_layers")
    return bool(count) and header.architecture in WITH_GRAPHS
