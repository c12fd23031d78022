"""`edgecs distill`: trains a drafter for a model on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import platformdirs

from edgecs.calibrate.bundled_drafters import all_bundled
from edgecs.errors import ConfigError
from edgecs.runtime.target import load_target
from edgecs_cli.console import echo, show_log
from edgecs_cli.options.common import common_options, model_options
from edgecs_cli.options.fleet import ray_option
from edgecs_cli.options.kinds import Finite, Whole
from edgecs_cli.options.recipe import Call, find_model, read_recipe, taken
from edgecs_cli.options.sections import Section, Sectioned, option
from edgecs_cli.options.shared import Interrupt, reports_errors

if TYPE_CHECKING:
    from edgecs.runtime.loader import Loaded
    from edgecs.runtime.recipe import Recipe as LoadedRecipe
    from edgecs_convert.distill.candidates import Helpers


@click.command(cls=Sectioned)
@model_options
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Folder of the drafter, file of an EAGLE-3 drafter; default: MODEL-KIND.",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Prompts to answer, one per line or as JSON Lines with prompt, text or turns; "
    "default: generated prompts.",
)
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(["head", "decoder", "eagle3"]),
    multiple=True,
    default=["head"],
    show_default=True,
    help="A head on the model's hidden states, a standalone decoder, or an EAGLE-3 "
    "drafter, a GGUF that llama-server runs too; of several the best one is kept.",
)
@click.option(
    "--begin-with",
    "head",
    metavar="HEAD",
    help="Folder of a head of the same model, or the name of a bundled one, whose "
    "weights an EAGLE-3 drafter begins with; it then needs less training.",
)
@click.option(
    "--tokens",
    type=Whole(1000),
    default=400_000,
    show_default=True,
    help="Tokens of the model's own answers to train on.",
)
@click.option(
    "--resume-from-log",
    "log",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="Continue training the drafter of --work on the answers that `--log-answers` "
    "saved in this folder; --tokens, --rows and --answer must be unchanged.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Folder of samples and checkpoints, to resume from; default: in the cache.",
)
@ray_option("write the answers and try the drafters")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@option(
    Section.TRAINING,
    "--epochs",
    type=Finite(0.01, 100),
    default=4.0,
    show_default=True,
    help="Number of passes over the tokens.",
)
@option(
    Section.TRAINING,
    "--rows",
    type=Whole(16),
    default=12_288,
    show_default=True,
    help="Vocabulary of the drafter: the tokens that the model generates most often.",
)
@option(
    Section.TRAINING,
    "--answer",
    type=Whole(8, 4096),
    default=256,
    show_default=True,
    help="Maximum tokens of an answer.",
)
@option(
    Section.TRAINING,
    "--parallel",
    type=Whole(1, 256),
    default=32,
    show_default=True,
    help="Answers generated in parallel.",
)
@option(
    Section.TRAINING,
    "--rate",
    type=Finite(0, 1, min_open=True),
    default=1.5e-3,
    show_default=True,
    help="Highest learning rate.",
)
@option(
    Section.TRAINING,
    "--finish",
    type=click.Choice(["tvd", "jsd"]),
    multiple=True,
    help="Train each drafter for one more epoch with another loss, a decoder also on "
    "its own answers; the result is one more candidate.",
)
@option(
    Section.TRAINING,
    "--layers",
    type=Whole(1, 64),
    default=2,
    show_default=True,
    help="Layers of a decoder.",
)
@option(
    Section.TRAINING,
    "--width",
    type=Whole(64, 8192),
    help="Width of a decoder, a multiple of 64; default: the model's own if that is "
    "at most 576; training then starts from some of the model's layers.",
)
@option(
    Section.TRAINING,
    "--quantize",
    type=click.Choice(["int8", "none", "q8_0", "q4_0", "f16"]),
    help="Type of the drafter's matrices: int8 (default) or none, of eagle3 q8_0 "
    "(default), q4_0 or f16.",
)
@option(
    Section.TRAINING,
    "-s",
    "--seed",
    type=Whole(0),
    default=1,
    show_default=True,
    help="Seed of the prompts, of sampled answers and of training.",
)
@common_options
@reports_errors
def distill(**values: Any) -> int:
    """Train a drafter for a model on this machine.

    The model answers generated prompts in parallel; a small drafter is trained on the
    answers, quantised, and measured on topics it was not trained on. Of several
    candidates the one with the highest expected speed-up on this machine is kept. An
    interrupted run resumes. A small model takes about an hour on two cores.

    \b
    edgecs distill -m smollm2-135m-instruct -o drafter
    edgecs distill -m ./model.gguf --prompts mine.txt --tokens 1000000 -o drafter
    edgecs distill -m ./model.gguf --kind head --kind decoder --finish tvd -o best
    edgecs distill -m ./model.gguf --kind eagle3 --quantize q4_0 -o drafter.gguf
    edgecs distill -m ./model.gguf --kind eagle3 --begin-with drafter -o eagle.gguf
    edgecs generate -m ./model.gguf --draft drafter -p "What is a llama?"
    edgecs chat -m ./model.gguf --draft drafter --log-answers answers
    edgecs distill -m ./model.gguf --resume-from-log answers --epochs 1 -o better
    edgecs distill -m ./model.gguf --ray auto -o drafter
    """
    needed = [("torch", "distill"), ("onnx", "distill")]
    if values["ray"] is not None:
        needed.append(("ray", "ray"))
    if "decoder" in values["kinds"]:
        needed.append(("optimum", "convert"))
    for package, extra in needed:
        if find_spec(package) is None:
            raise ConfigError(
                f"distill needs {package}, which is not installed: pip install "
                f'"edgecs[{extra}]"'
            )
    recipe, call = read_recipe(values), taken(Call, values)
    show_log(call.verbose)
    path = find_model(recipe.model, offline=call.offline)
    name = path.stem.lower()
    kinds, quantize = [*dict.fromkeys(values["kinds"])], values["quantize"]
    _check_type(kinds, quantize)
    if values["head"] is not None and "eagle3" not in kinds:
        raise ConfigError("--begin-with is for EAGLE-3 drafters: give --kind eagle3")
    out = values["out"] or Path(f"{name}-{kinds[0]}")
    cache = Path(platformdirs.user_cache_dir("edgecs"))
    work = values["work"] or cache / "distill" / name

    from edgecs_convert.distill.drafter_kinds import DecoderKind, HeadKind, Kind
    from edgecs_convert.distill.eagle_kind import EagleKind
    from edgecs_convert.distill.pipeline import Plan
    from edgecs_convert.distill.pipeline import distill as make
    from edgecs_convert.distill.recipe import Recipe

    known: dict[str, Kind] = {
        "head": HeadKind(),
        "decoder": DecoderKind(values["layers"], values["width"]),
        "eagle3": EagleKind(quantize or "q8_0", _head(values["head"])),
    }
    plan = Plan(
        values["tokens"],
        values["rows"],
        values["answer"],
        values["parallel"],
        values["prompts"],
        Recipe(values["epochs"], values["rate"], seed=values["seed"]),
        int8=quantize != "none",
        log=values["log"],
        kinds=[known[kind] for kind in kinds],
        finish=list(dict.fromkeys(values["finish"])),
    )
    with (
        Interrupt() as cancel,
        load_target(
            path, recipe.options, call.folders, call.reports, cancel=cancel
        ) as loaded,
        ExitStack() as closing,
    ):
        helpers = None
        if values["ray"] is not None:
            helpers = closing.enter_context(_fleet(values["ray"], recipe, loaded, call))
        made = make(loaded, work, out, plan, call.say, helpers)
    if values["as_json"]:
        others = [{"name": one.name, **one.state()} for one in made.candidates]
        chosen = {"path": str(made.path), **made.chosen.state()}
        echo(json.dumps({**chosen, "candidates": others}))
        return 0
    for one in made.candidates:
        shares = " / ".join(f"{share:.2f}" for share in one.worth.shares)
        echo(
            f"{one.name}: first token, first two, first three accepted in {shares} of "
            f"{one.worth.drafts:,} drafts on unseen topics, "
            f"{one.worth.seconds * 1e3:.2f} ms a token; expected speed of greedy "
            f"answers here {one.speedup:.2f} x plain decoding, {one.ideal:.2f} x if "
            "wider calls were free"
        )
    echo(f"{made.path}: {made.chosen.name}")
    return 0


@contextmanager
def _fleet(
    address: str, recipe: LoadedRecipe, loaded: Loaded, call: Call
) -> Iterator[Helpers]:
    """The workers of a Ray cluster, with the target of this command."""
    from edgecs.fleet.ray_pool import connected
    from edgecs.fleet.worker_target import WorkerTarget
    from edgecs_convert.distill.fleet_work import DistillFleet

    target = WorkerTarget.of(recipe.model, loaded.model.path, recipe.options)
    threads = recipe.options.threads
    with connected(address, call.say) as fleet:
        yield DistillFleet(fleet, target, threads, loaded.cancel, call.say)


def _head(name: str | None) -> Path | None:
    """The folder of a head: the bundled one of a name, or a path."""
    return None if name is None else all_bundled().get(name, Path(name))


def _check_type(kinds: Sequence[str], quantize: str | None) -> None:
    """Raises ConfigError for a type of matrices that a kind does not have."""
    for kind in kinds if quantize else ():
        if (kind == "eagle3") is (quantize in ("int8", "none")):
            known = "q8_0, q4_0 or f16" if kind == "eagle3" else "int8 or none"
            raise ConfigError(
                f"--quantize {quantize} is not a type of --kind {kind}: give {known}"
            )
