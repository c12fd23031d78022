"""`edgecs distill`: makes a drafter for a model, on this machine."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import platformdirs

from edgecs.errors import ConfigError
from edgecs_cli.exact import load_target
from edgecs_cli.files import find_models
from edgecs_cli.options import load_options, model_options
from edgecs_cli.shared import Interrupt, reports_errors, say, show_log


@click.command()
@click.option(
    "--tokens",
    type=click.IntRange(1000),
    default=400_000,
    show_default=True,
    help="Tokens of the model's own answers to learn from.",
)
@click.option(
    "--epochs",
    type=click.FloatRange(0.01, 100),
    default=4.0,
    show_default=True,
    help="How often every token is learnt from.",
)
@click.option(
    "--rows",
    type=click.IntRange(16),
    default=12_288,
    show_default=True,
    help="Tokens that the drafter knows: those that the model says most often.",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Prompts to answer, one a line or as JSON Lines with prompt, text or turns; "
    "otherwise they are made up.",
)
@click.option(
    "--answer",
    type=click.IntRange(8, 4096),
    default=256,
    show_default=True,
    help="Most tokens of an answer.",
)
@click.option(
    "--parallel",
    "seats",
    type=click.IntRange(1, 256),
    default=32,
    show_default=True,
    help="Answers that are written at once.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.5e-3,
    show_default=True,
    help="Highest learning rate.",
)
@click.option(
    "--quantize",
    type=click.Choice(["int8", "none"]),
    default="int8",
    show_default=True,
    help="Matrices of the drafter.",
)
@click.option(
    "--resume-from-log",
    "log",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="Go on training the drafter of --work with the answers in this folder, which "
    "`--log-answers` kept; --tokens, --rows and --answer as when it was made.",
)
@click.option(
    "-s",
    "--seed",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Of the questions, of sampled answers and of the training.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Samples and checkpoints, to go on from; by default in the cache folder.",
)
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The drafter; by default MODEL-head here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@model_options
@reports_errors
def distill(**values: Any) -> int:
    """Make a drafter for a model, on this machine.

    The model answers made-up questions, many at once; a small head on its hidden states
    learns to say the same; it is quantised and measured on questions about things that
    it has never seen. An interrupted run goes on where it stopped. A small model takes
    about an hour on two cores.

    \b
    edgecs distill -m smollm2-135m-instruct -o drafter
    edgecs distill -m ./model.gguf --prompts mine.txt --tokens 1000000 -o drafter
    edgecs generate -m ./model.gguf --draft drafter -p "What is a llama?"
    edgecs chat -m ./model.gguf --draft drafter --log-answers answers
    edgecs distill -m ./model.gguf --resume-from-log answers --epochs 1 -o better
    """
    if missing := [name for name in ("torch", "onnx") if find_spec(name) is None]:
        raise ConfigError(
            f"distill needs {missing[0]}, which is not installed: pip install "
            '"edgecs[distill]"'
        )
    load_options(values)
    show_log(values["verbose"])
    path, _ = find_models(values["model"], (), offline=values["offline"])
    name = path.stem.lower()
    out = values["out"] or Path(f"{name}-head")
    if out.exists():
        raise ConfigError(f"{out} exists already: give a folder that does not (-o)")
    cache = Path(platformdirs.user_cache_dir("edgecs"))
    work = values["work"] or cache / "distill" / name

    from edgecs_convert.distill.pipeline import Plan
    from edgecs_convert.distill.pipeline import distill as make
    from edgecs_convert.distill.train import Recipe

    plan = Plan(
        values["tokens"],
        values["rows"],
        values["answer"],
        values["seats"],
        values["prompts"],
        Recipe(values["epochs"], values["rate"], seed=values["seed"]),
        int8=values["quantize"] == "int8",
        log=values["log"],
    )
    with Interrupt() as cancel, load_target(path, values, cancel) as loaded:
        made = make(
            loaded, work, out, plan, lambda text: say(text, quiet=values["quiet"])
        )
    if values["as_json"]:
        click.echo(json.dumps({"folder": str(made.folder), **made.state()}))
        return 0
    shares = " / ".join(f"{share:.2f}" for share in made.worth.shares)
    click.echo(
        f"{made.folder}: its first token, first two and first three are right in "
        f"{shares} of {made.worth.drafts:,} drafts on topics that it has not seen, "
        f"{made.worth.seconds * 1e3:.2f} ms a token; {made.speedup:.2f} x plain "
        "decoding is expected of greedy answers here"
    )
    return 0
