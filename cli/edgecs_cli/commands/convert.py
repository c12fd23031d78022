"""`edgecs convert`: converts a model to other formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecs.errors import ConfigError
from edgecs.runtime.folders import Folders
from edgecs_cli.console import echo, echo_table, say
from edgecs_cli.options.kinds import Whole
from edgecs_cli.options.recipe import find_model
from edgecs_cli.options.references import Reference
from edgecs_cli.options.shared import Interrupt, reports_errors

if TYPE_CHECKING:
    from edgecs_convert.gguf.ranking import Ranked
    from edgecs_convert.gguf.types import Variant

_USUAL = ("bf16", "q8_0", "q4_0")


@click.group()
def convert() -> None:
    """Convert a model to other formats.

    \b
    edgecs convert gguf model-bf16.gguf --to q4_k_m --to q8_0
    edgecs convert gguf model-bf16.gguf --for-this-machine
    edgecs convert onnx small.gguf drafter
    """


@convert.command()
@click.argument("model", type=Reference())
@click.option(
    "--to",
    "kinds",
    multiple=True,
    metavar="TYPE",
    help="A llama.cpp type, such as q4_k_m or iq4_xs. May be repeated.  "
    f"[default: {', '.join(_USUAL)}]",
)
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    metavar="FOLDER",
    help="Output folder; default: the current one.",
)
@click.option(
    "--imatrix",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="An importance matrix, the .gguf that llama-imatrix writes.",
)
@click.option(
    "--for-this-machine",
    "ranked",
    is_flag=True,
    help="Also measure each type here, with its perplexity and its divergence from the "
    "source on a small text, and list the fastest first.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--offline", is_flag=True, help="Never use the network.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but the table.")
@reports_errors
def gguf(model: str, **values: Any) -> int:
    """Quantise a model to GGUF files, with llama.cpp's quantiser.

    MODEL is as for -m, or the folder of a Hugging Face checkpoint (Llama, Qwen2, Qwen3;
    needs the extra `convert`), which is converted to bf16 first. Existing files are
    kept. A quantised model can be quantised again, with the quality of the worse of the
    two types; the table notes this.

    \b
    edgecs convert gguf model-f16.gguf --to q4_k_m --imatrix imatrix.gguf -o models
    edgecs convert gguf smollm2-135m-instruct --to q8_0 --for-this-machine
    """
    from edgecs_convert.gguf.types import make

    path = _source(
        model, values["folder"], offline=values["offline"], quiet=values["quiet"]
    )
    folder, kinds = values["folder"], [kind.lower() for kind in values["kinds"]]
    variants = []
    for kind in kinds or _USUAL:
        say(f"making {kind}", quiet=values["quiet"])
        variants.append(make(path, folder, kind, imatrix=values["imatrix"]))
    perplexity, ranked = None, list["Ranked"]()
    if values["ranked"]:
        perplexity, ranked = _ranked(path, variants, values["quiet"])
        variants = [one.variant for one in ranked]
    if values["as_json"]:
        echo(json.dumps(_fields(path, variants, perplexity, ranked)))
        return 0
    _table(variants, ranked)
    if perplexity is not None:
        echo(f"{path.name}: perplexity {perplexity:.3f}")
    return 0


def _source(model: str, into: str, *, offline: bool, quiet: bool) -> Path:
    """The source GGUF; converts a checkpoint."""
    from edgecs_convert.gguf.hf_checkpoint import is_checkpoint, write_gguf

    folder = Path(model)
    if not is_checkpoint(folder):
        return find_model(model, offline=offline)
    _require("convert gguf of a checkpoint", "torch", "safetensors")
    path = Path(into) / f"{folder.resolve().name.lower()}-bf16.gguf"
    if not path.exists():
        say("converting the checkpoint to bf16", quiet=quiet)
        write_gguf(folder, path)
    return path


def _require(what: str, *modules: str) -> None:
    """Raises ConfigError where the extra `convert` is not installed."""
    from importlib.util import find_spec

    if missing := [name for name in modules if find_spec(name) is None]:
        raise ConfigError(
            f"{what} needs {missing[0]}, which is not installed: pip install "
            '"edgecs[convert]"'
        )


@convert.command()
@click.argument("model", type=Reference())
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--quantize",
    type=click.Choice(["int8", "int4", "none"]),
    default="int8",
    show_default=True,
    help="Type of all matrices, including the output matrix.",
)
@click.option(
    "--window",
    type=Whole(8),
    default=512,
    show_default=True,
    help="Context of the drafter in tokens.",
)
@click.option(
    "--vocab-from",
    "vocabulary_from",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="A text as the target writes it: only its tokens are kept, which shrinks the "
    "largest matrices.",
)
@click.option(
    "--rows",
    type=Whole(16),
    default=16_384,
    show_default=True,
    help="Maximum number of tokens kept with --vocab-from.",
)
@click.option(
    "--keep-layers",
    "layers",
    metavar="N|A,B,...",
    help="Keep the N most important layers, or these layers, counted from 0 (a single "
    "one as A,).",
)
@click.option("--offline", is_flag=True, help="Never use the network.")
@reports_errors
def onnx(model: str, folder: Path, layers: str | None, **values: Any) -> int:
    """Convert a small GGUF to an ONNX drafter.

    It drafts for every model with the same tokenizer. Prints how far it differs from
    its source. Needs the extra `convert`.

    \b
    edgecs convert onnx small.gguf drafter
    edgecs convert onnx small.gguf drafter --vocab-from answers.txt --keep-layers 12
    edgecs generate -m big.gguf --draft drafter -p "What is a llama?"
    """
    _require("convert onnx", "torch", "optimum")
    from edgecs_convert.onnx.export import Form, export

    kept = _layers(layers)
    path = find_model(model, offline=values.pop("offline"))
    echo(str(export(path, folder, Form(**values, layers=kept), say)))
    return 0


def _layers(text: str | None) -> int | tuple[int, ...] | None:
    """The value of --keep-layers."""
    if text is None:
        return None
    try:
        numbers = tuple(int(part) for part in text.rstrip(",").split(","))
    except ValueError as error:
        raise click.UsageError(
            f"--keep-layers takes a number, or numbers with commas, not {text!r}"
        ) from error
    return numbers if "," in text else numbers[0]


def _ranked(
    path: Path, variants: Sequence[Variant], quiet: bool
) -> tuple[float, list[Ranked]]:
    from edgecs_convert.gguf.ranking import rank

    with Interrupt() as cancel:
        tell = partial(say, quiet=quiet)
        return rank(path, variants, cancel, tell, Folders().findings)


def _table(variants: Sequence[Variant], ranked: Sequence[Ranked]) -> None:
    titles = ["type", "MiB", "bits a weight"]
    if ranked:
        titles += ["tok/s", "with drafts", "perplexity", "divergence"]
    rows = []
    for i, one in enumerate(variants):
        row = [one.kind, f"{one.size / (1 << 20):.1f}", f"{one.bits:.2f}"]
        if ranked:
            here = ranked[i]
            row += [f"{here.plain:.1f}", f"{here.drafted:.1f}"]
            row += [f"{here.perplexity:.3f}", f"{here.divergence:.4f}"]
        rows.append([*row, str(one.path) + _note(one)])
    echo_table([[*titles, "file"], *rows], words=(0, len(titles)))


def _note(variant: Variant) -> str:
    if variant.source is None:
        return ""
    return f" (quantised again, from {variant.source}: no measure of quality)"


def _fields(
    path: Path,
    variants: Sequence[Variant],
    perplexity: float | None,
    ranked: Sequence[Ranked],
) -> dict[str, Any]:
    rows = []
    for i, one in enumerate(variants):
        row: dict[str, Any] = {**one._asdict(), "path": str(one.path)}
        row["requantised_from"] = row.pop("source")
        if ranked:
            row |= {
                "plain_tokens_per_second": ranked[i].plain,
                "drafted_tokens_per_second": ranked[i].drafted,
                "perplexity": ranked[i].perplexity,
                "divergence": ranked[i].divergence,
            }
        rows.append(row)
    return {"source": path.name, "perplexity": perplexity, "variants": rows}
