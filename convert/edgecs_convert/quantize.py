"""Other quantisations of a GGUF, made by llama.cpp's own quantiser.

    python -m edgecs_convert.quantize MODEL.gguf FOLDER [--to bf16 --to q8_0 --to q4_0]

Writes FOLDER/MODEL-q4_0.gguf and its like. What is already quantised is quantised
again: fine for comparing speeds, while answers are those of the worse of the two. A run
that is cut short leaves no half file under that name.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import click
import llama_cpp as lib

from edgecs.backends.llama_library import clear_log, logged_errors
from edgecs.tuning.quantisations import quantisation

KINDS = {
    "bf16": lib.LLAMA_FTYPE_MOSTLY_BF16,
    "q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": lib.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_k_m": lib.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}


def make(model: Path, folder: Path, kind: str) -> Path:
    """Quantises a model; a file that is already there is kept.

    Raises click.ClickException where llama.cpp refuses.
    """
    name, _ = quantisation(model.stem)
    path = folder / f"{name}-{kind}.gguf"
    if path.exists():
        return path
    clear_log()
    params = lib.llama_model_quantize_default_params()
    params.ftype = KINDS[kind]
    params.allow_requantize = True
    part = path.with_name(path.name + ".part")
    source, target = str(model).encode(), str(part).encode()
    if lib.llama_model_quantize(source, target, ctypes.pointer(params)):
        part.unlink(missing_ok=True)
        why = "; ".join(logged_errors()) or "it gives no reason"
        raise click.ClickException(f"llama.cpp cannot make {kind} of {model}: {why}")
    part.replace(path)
    return path


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--to",
    "kinds",
    type=click.Choice(list(KINDS)),
    multiple=True,
    default=("bf16", "q8_0", "q4_0"),
    show_default=True,
)
def main(model: Path, folder: Path, kinds: tuple[str, ...]) -> None:
    """Make other quantisations of a GGUF."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        click.echo(make(model, folder, kind))


if __name__ == "__main__":
    main()
