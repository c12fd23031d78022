"""`edgecs tune`: measures a model here, and chooses who drafts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import click

from edgecs import tuning
from edgecs.chat_template import ChatTemplate
from edgecs.context import Tokens
from edgecs.errors import Cancelled, ConfigError, EdgecsError
from edgecs.exactness import Exact
from edgecs.load import Loaded, LoadedDrafter, load, load_drafter
from edgecs.speculation import Speculation
from edgecs.tuning.quantisations import quantisations
from edgecs.tuning.report import Report
from edgecs.tuning.trials import PROMPTS
from edgecs_cli.options import (
    GpuLayersType,
    draft_load_options,
    load_options,
    model_options,
)
from edgecs_cli.run import _unique
from edgecs_cli.shared import (
    Interrupt,
    open_profiles,
    open_store,
    progress_bars,
    reports_errors,
    say,
    show_log,
)

_PLAINLY = "it cannot forget rejected tokens, so nothing can be drafted for it"


@click.command()
@click.option(
    "--draft",
    "drafts",
    multiple=True,
    metavar="MODEL",
    help="A drafter to try: a model as for -m, or the folder of an ONNX drafter. May "
    "be repeated, the largest first.",
)
@click.option(
    "--quick", is_flag=True, help="Measure less: 3 repeats, answers of 48 tokens."
)
@click.option(
    "--repeats",
    type=click.IntRange(1, 100),
    metavar="N",
    help="How often every width is timed; deep in the context half as often.  "
    "[default: 7]",
)
@click.option(
    "-n",
    "--predict",
    "--max-tokens",
    "tokens",
    type=click.IntRange(8, 4096),
    metavar="N",
    help="Most tokens of an answer that tries a chain.  [default: 96]",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the cost curve and the chains as .png or .svg; needs matplotlib.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--exact",
    type=click.Choice(get_args(Exact)),
    default="auto",
    show_default=True,
    help="Which widths chains may use, as for `edgecs generate`.",
)
@click.option(
    "-td",
    "--threads-draft",
    "threads_draft",
    type=click.IntRange(0),
    default=0,
    help="Threads of drafters; 0: one for ONNX, those of -t for GGUF.",
)
@click.option(
    "-ngld",
    "--gpu-layers-draft",
    "layers_draft",
    type=GpuLayersType(),
    default="auto",
    show_default=True,
    help="Layers of GGUF drafters on the GPU.",
)
@model_options
@reports_errors
def tune(**values: Any) -> int:
    """Measure a model here, and choose who drafts.

    Times the model's calls by width and depth, finds the widths that give the bits of
    plain decoding, tries every chain of the drafters against plain decoding, and keeps
    what it found for `generate` and `chat`. It takes about a minute for a small model
    and several for a larger one; other work on the machine disturbs it.

    \b
    edgecs tune -m smollm2-135m-instruct
    edgecs tune -m big.gguf --draft small.gguf --plot costs.png
    edgecs tune -m user/repo:Q4_K_M --quick --json
    """
    plotter = _plotter(values["plot"]) if values["plot"] else None
    paths = _find(values)
    with ExitStack() as closing, Interrupt() as cancel:
        loaded = closing.enter_context(
            load(paths[0], load_options(values), cancel=cancel)
        )
        if not loaded.target.rewindable:
            _decodes_plainly(loaded, as_json=values["as_json"])
            return 0
        drafters = _load_drafters(paths[1:], loaded, values, closing)
        report = _measure(loaded, drafters, values)
    if values["as_json"]:
        click.echo(json.dumps(report.fields()))
    else:
        click.echo("\n".join(report.lines()))
    if plotter:
        plotter.draw(values["plot"], report.key.model, report.tuned)
    if not report.kept:
        raise EdgecsError(
            f"the profile was not kept: {open_profiles().root} cannot be written"
        )
    return 0


def _plotter(path: Path) -> ModuleType:
    """What draws; raises ConfigError where it could not draw to this file."""
    if path.suffix.lower() not in (".png", ".svg"):
        raise ConfigError(f"a plot is a .png or an .svg file, got {path}")
    try:
        from edgecs_cli import curve_plot
    except ImportError as error:
        raise ConfigError(
            'a plot needs matplotlib: pip install "edgecs[plot]"'
        ) from error
    is_new = not path.exists()
    try:
        path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    return curve_plot


def _find(values: dict[str, Any]) -> list[Path]:
    """The files of the target and of the drafters, fetched if they are not here."""
    load_options(values)  # settings that cannot work are refused before a download
    show_log(values["verbose"])
    store = open_store(offline=values["offline"])
    with progress_bars() as progress:
        model = store.path(values["model"], progress)
        return [
            model,
            *(
                Path(name) if Path(name).is_dir() else store.path(name, progress)
                for name in values["drafts"]
            ),
        ]


def _load_drafters(
    paths: Sequence[Path], loaded: Loaded, values: dict[str, Any], closing: ExitStack
) -> list[LoadedDrafter]:
    drafters: list[LoadedDrafter] = []
    for path in paths:
        drafter = load_drafter(path, loaded, draft_load_options(values))
        closing.enter_context(drafter)
        drafters.append(_unique(drafter, drafters))
    return drafters


def _decodes_plainly(loaded: Loaded, *, as_json: bool) -> None:
    name = loaded.model.path.stem
    if as_json:
        fields = {"model": vars(loaded.key()), "chosen": [], "reason": _PLAINLY}
        click.echo(json.dumps(fields))
    else:
        click.echo(f"{name} decodes plainly: {_PLAINLY}. There is nothing to tune.")


def _measure(
    loaded: Loaded, drafters: list[LoadedDrafter], values: dict[str, Any]
) -> Report:
    """Tunes, and keeps the profile; an interrupted tuning keeps the old one."""
    least = tuning.QUICK_EFFORT if values["quick"] else tuning.Effort()
    effort = least._replace(
        repeats=values["repeats"] or least.repeats,
        tokens=values["tokens"] or least.tokens,
    )
    key, profiles = loaded.key(), open_profiles()
    known = Speculation(
        loaded.target, exact=values["exact"], key=key, profiles=profiles
    )
    quiet = values["quiet"]
    for note in known.notes:
        say(note, quiet=quiet)
    tuned = tuning.tune(
        known,
        loaded.model.vocabulary,
        drafters,
        {kind: _encode(loaded, text) for kind, text in PROMPTS.items()},
        effort,
        progress=lambda text: say(text, quiet=quiet),
    )
    if loaded.cancel.is_set():
        raise Cancelled("stopped before the end: nothing was kept")
    kept = tuning.keep(known, key, tuned)
    path = loaded.model.path
    here = [*path.parent.glob("*.gguf")]
    here += [model.path for model in open_store(offline=True).models() if model.path]
    others = quantisations(path, here, key, profiles)
    return Report(key, known, tuned, others, kept)


def _encode(loaded: Loaded, text: str) -> Tokens:
    vocabulary = loaded.model.vocabulary
    if not vocabulary.chat_template:
        return vocabulary.encode(text)
    return ChatTemplate(vocabulary).encode([{"role": "user", "content": text}])
