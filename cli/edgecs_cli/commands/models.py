"""`edgecs models`: finds, lists, downloads, checks and removes models."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from edgecs.errors import ModelError
from edgecs.hub.store import Check
from edgecs.runtime.folders import Folders
from edgecs_cli.commands.pairs import find_pairs
from edgecs_cli.commands.search import describe, gigabytes, rows_of, search
from edgecs_cli.console import complain, echo, echo_table, say
from edgecs_cli.options.references import Reference
from edgecs_cli.options.shared import (
    progress_bars,
    reports_errors,
)

_NONE = "there is no model here: edgecs models search lists some, edgecs pull gets one"


@click.group()
def models() -> None:
    """Find, list, download, show and remove models.

    \b
    edgecs models search
    edgecs models pull smollm2-135m-instruct
    edgecs models list
    """


models.add_command(search)


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@reports_errors
def list_models(as_json: bool) -> None:
    """List the models on this machine.

    These are the models of the catalogue that were pulled, and other GGUF files in the
    cache of Hugging Face. `edgecs models search` lists the catalogue.

    \b
    edgecs models list --json
    """
    store = Folders().store
    entries = [model for model in store.models() if model.path] + store.others()
    if as_json:
        echo(json.dumps([describe(model) for model in entries]))
        return
    rows = [(m.manifest.name, gigabytes(m), m.manifest.description) for m in entries]
    echo_table(rows, words=(0, 2))
    if not rows:
        say(_NONE)


@models.command()
@click.argument("model", type=Reference())
@reports_errors
def pull(model: str) -> None:
    """Download a model, or check the local file.

    An interrupted download resumes. The path is printed to stdout.

    \b
    edgecs models pull smollm2-135m-instruct
    edgecs models pull user/repo:Q4_K_M
    """
    with progress_bars() as progress:
        path = Folders().store.pull(model, progress)
    echo(str(path))


@models.command()
@click.argument("model", type=Reference())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@reports_errors
def show(model: str, as_json: bool) -> None:
    """Show the manifest of a model.

    \b
    edgecs models show smollm2-135m-instruct --json
    """
    entry = describe(Folders().store.find(model))
    if as_json:
        echo(json.dumps(entry))
        return
    rows = [(key, "-" if value is None else value) for key, value in rows_of(entry)]
    echo_table(rows, words=(0, 1))


@models.command()
@click.argument("models", nargs=-1, type=Reference(), metavar="[MODEL]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@reports_errors
def verify(models: tuple[str, ...], as_json: bool) -> None:
    """Check the files of models against their sizes and checksums.

    Without names: all models on this machine. Nothing is downloaded. The exit code is 3
    if a model is damaged.

    \b
    edgecs models verify
    edgecs models verify user/repo:Q4_K_M --json
    """
    store = Folders().store
    names = models or tuple(model.manifest.name for model in store.models())
    with progress_bars() as progress:
        checks = [store.verify(name, progress) for name in names]
    if not models:
        checks = [check for check in checks if check.state != "not here"]
    if as_json:
        echo(json.dumps([_verdict(check) for check in checks]))
    else:
        rows = [(check.model.manifest.name, _state(check)) for check in checks]
        echo_table(rows, words=(0, 1))
        if not rows:
            say(_NONE)
    damaged = [c.model.manifest.name for c in checks if c.state == "damaged"]
    if damaged:
        raise ModelError(
            f"damaged: {', '.join(damaged)}; run `edgecs models pull` for each"
        )


@models.command()
@click.argument("models", nargs=-1, type=Reference(), metavar="[MODEL]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@reports_errors
def pairs(models: tuple[str, ...], as_json: bool) -> None:
    """Show which drafters fit which models.

    Pairs every model with every smaller one, with the folders of ONNX drafters, and
    with the bundled drafters, and shows the expected speed-up here. Without names: all
    downloaded models.

    \b
    edgecs models pairs
    edgecs models pairs big.gguf small.gguf drafter/
    """
    store = Folders().store
    if models:
        paths = [Path(m) if os.path.isdir(m) else store.path(m) for m in models]
    else:
        paths = [model.path for model in store.models() if model.path]
    found, problems = find_pairs(paths, Folders().profiles)
    for problem in problems:
        complain("edgecs models pairs", problem)
    if as_json:
        echo(json.dumps([{**vars(pair), "about": pair.about} for pair in found]))
        return
    for pair in found:
        echo(f"{pair.target} <- {pair.drafter}: {pair.about}")
    if not found:
        say("there are no pairs: give some models, or pull one (edgecs models search)")


@models.command()
@click.argument("model", type=Reference())
@reports_errors
def rm(model: str) -> None:
    """Remove the files of a model from this machine.

    \b
    edgecs models rm smollm2-135m-instruct
    """
    gone = Folders().store.remove(model)
    for path in gone:
        echo(str(path))
    if not gone:
        say(f"{model} is not on this machine: nothing to remove")


def _state(check: Check) -> str:
    return f"{check.state}: {check.problem}" if check.problem else check.state


def _verdict(check: Check) -> dict[str, str | None]:
    path = check.model.path
    return {
        "name": check.model.manifest.name,
        "path": str(path) if path else None,
        "state": check.state,
        "problem": check.problem,
    }
