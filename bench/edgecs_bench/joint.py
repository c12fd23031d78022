"""Times calls with requests of several sequences: a table, and JSON at the end.

    python -m edgecs_bench.joint -m MODEL.gguf

One number per sequence is the width of its request. llama.cpp computes streams of KV
cells together only up to the smallest of their widths; edgecs pads the narrower ones.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median

import click

from edgecs.core.context import Context
from edgecs.core.draft import Draft, Request
from edgecs.engines.host import cpu_name
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import load
from edgecs_bench.text_tables import aligned

_SEQUENCES, _DEPTH, _ROUNDS = 4, 200, 30  # depth: tokens of every context
SHAPES = (
    *((1,), (4,), (8,), (16,)),
    *((1, 1), (1, 1, 1, 1), (2, 2, 2, 2), (4, 4), (4, 4, 4, 4)),
    *((4, 1), (4, 1, 1, 1)),
)


def seconds(target: LlamaLM, widths: tuple[int, ...], *, pads: bool) -> float:
    """Median of the calls with these widths, with or without padding."""
    took, target.calls.pads = [], pads
    contexts = [Context([i + 5] * _DEPTH) for i in range(len(widths))]
    target.score([Request(one, sequence=i) for i, one in enumerate(contexts)])
    for _ in range(_ROUNDS):
        requests = []
        for i, (context, width) in enumerate(zip(contexts, widths, strict=True)):
            context.append([11])
            draft = Draft.chain(range(20, 19 + width), "bench")
            requests.append(Request(context, draft, i))
        began = time.perf_counter()
        target.score(requests)
        took.append(time.perf_counter() - began)
    return median(took)


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option("-r", "--rounds", default=3, show_default=True)
def main(model: Path, rounds: int) -> None:
    """Time joint calls of a model."""
    kinds = [(shape, True) for shape in SHAPES]
    kinds += [(shape, False) for shape in SHAPES if len(set(shape)) > 1]
    found: dict[tuple[tuple[int, ...], bool], list[float]] = {k: [] for k in kinds}
    with load(model, LoadOptions(n_ctx=1024, sequences=_SEQUENCES)) as loaded:
        for _ in range(rounds):
            for (shape, pads), times in found.items():
                times.append(1e3 * seconds(loaded.target, shape, pads=pads))
        kernels = loaded.options.kernels
    lines: list[list[str]] = [["widths", "ms", "of one token"]]
    single = median(found[(1,), True])
    for (shape, pads), times in found.items():
        name = "+".join(map(str, shape)) + ("" if pads else " not padded")
        lines.append([name, f"{median(times):.1f}", f"{median(times) / single:.2f}"])
    print("\n".join(aligned(lines)))
    every = [
        {"widths": shape, "padded": pads, "ms": [round(t, 3) for t in times]}
        for (shape, pads), times in found.items()
    ]
    head = {"model": model.stem, "cpu": cpu_name(), "kernels": kernels}
    print(json.dumps({**head, "depth": _DEPTH, "calls": every}))


if __name__ == "__main__":
    main()
