"""Opening models for a command."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from edgecs.errors import ConfigError
from edgecs.runtime.builder import Runtime, build
from edgecs.runtime.recipe import Recipe
from edgecs_cli.console import show_log
from edgecs_cli.options.recipe import Call
from edgecs_cli.options.shared import Interrupt


@contextmanager
def opened(
    recipe: Recipe, call: Call, interrupt: Interrupt, answers: Path | None = None
) -> Iterator[Runtime]:
    """Opens target, drafters and session; closes them at the end.

    answers: a folder to save answers in, for `edgecs distill`.
    """
    show_log(call.verbose)
    files = call.find(recipe)
    if answers:
        _can_keep_answers(answers)
    with ExitStack() as closing:
        with interrupt as cancel:
            runtime = closing.enter_context(
                build(recipe, files, call.folders, call.reports, cancel)
            )
        if answers:
            from edgecs_convert.distill.log import AnswerLog

            states, heat = runtime.loaded.target.note_states(), recipe.sampling
            log = AnswerLog(runtime.session, states, answers, heat.temperature)
            closing.callback(log.close)
        yield runtime


def _can_keep_answers(folder: Path) -> None:
    """Raises ConfigError now instead of after the answer."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"answers cannot be saved in {folder}: {error.strerror}; use another one"
        ) from error
