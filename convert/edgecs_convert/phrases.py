"""The phrases of a target, from answers that it writes or has written.

They are answers to generated questions, so nothing of a user is in them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

from edgecs.core.context import Tokens
from edgecs.core.reading import plain, read_bounded, reason, shown
from edgecs.errors import ConfigError
from edgecs.memory.phrases import Phrases, write_phrases
from edgecs.runtime.loader import Loaded
from edgecs.runtime.remembering import identity_of
from edgecs_convert.distill.data import NOTED, Tell, Wanted, write_samples
from edgecs_convert.distill.samples import read_answers, shards

_OF_TARGET = ("samples", "unseen")  # folders of a distillation; others are a drafter's
_LARGEST = 1 << 16  # bytes of the settings of answers


def build_phrases(
    loaded: Loaded, memory: Path, work: Path, wanted: Wanted, tell: Tell
) -> Phrases:
    """Writes the phrases of a loaded target, from answers that it writes now.

    memory: the folder of the memory. work: where answers are until the phrases are
    written, so an interrupted build goes on. Raises ConfigError, DistillError,
    ModelError, OutOfMemory, Cancelled.
    """
    threads = loaded.target.threads
    without = replace(wanted, states=False)
    write_samples(loaded.model, work, without, loaded.cancel, tell, threads=threads)
    phrases = _written(loaded, memory, read_answers(work))
    shutil.rmtree(work, ignore_errors=True)
    return phrases


def phrases_from(loaded: Loaded, memory: Path, answers: Path) -> Phrases:
    """Writes the phrases of a loaded target, from the answers of a distillation.

    answers: its work folder, or the folder of samples in it. Raises ConfigError,
    DistillError.
    """
    folders = [answers] if shards(answers) else _folders(answers)
    if not folders:
        raise ConfigError(
            f"{plain(str(answers))} has no answers: give the folder of `edgecs distill "
            "--work`"
        )
    for folder in folders:
        _check_target(folder, loaded.model.path.name)

    texts = chain.from_iterable(map(read_answers, folders))
    return _written(loaded, memory, texts)


def _folders(answers: Path) -> list[Path]:
    """The folders of a distillation with answers of the target."""
    found = (p for name in _OF_TARGET for p in answers.glob(f"{name}*"))
    return sorted(path for path in found if shards(path))


def _check_target(folder: Path, name: str) -> None:
    """Raises ConfigError for the answers of another model."""
    path = folder / NOTED
    try:
        noted = json.loads(read_bounded(path, _LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{plain(str(path))} does not say which model the answers are from "
            f"({reason(error)}): give the folder of `edgecs distill --work`"
        ) from error
    target = noted.get("target") if isinstance(noted, dict) else None
    if target != name:
        raise ConfigError(
            f"the answers in {plain(str(folder))} are from {shown(target)}, not from "
            f"{name}: give those of this model"
        )


def _written(loaded: Loaded, memory: Path, answers: Iterable[Tokens]) -> Phrases:
    vocab_size = loaded.target.vocab_size
    texts = [tokens.tolist() for tokens in answers]
    if any(not 0 <= token < vocab_size for text in texts for token in text):
        raise ConfigError(
            "the answers have ids that are no tokens of this model: give answers of it"
        )
    return write_phrases(memory, identity_of(loaded), texts)
