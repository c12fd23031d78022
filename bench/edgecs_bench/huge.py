"""What huge pages bring to the calls of a model: medians, and JSON at the end.

    python -m edgecs_bench.huge -m MODEL.gguf

The model is loaded as usual, without huge pages, and without mapping its file; calls of
all three take turns behind contexts of several lengths.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import click

from edgecs.backends import huge_pages
from edgecs.load import load
from edgecs.machine import cpu_name
from edgecs.options import LoadOptions
from edgecs.tuning.settings import Setting, otherwise
from edgecs.tuning.sweep import DEEPEST


@click.command()
@click.option("-m", "--model", type=click.Path(path_type=Path), required=True)
@click.option("-r", "--repeats", default=15, show_default=True)
@click.option("-c", "--ctx-size", default=DEEPEST + 128, show_default=True)
def main(model: Path, repeats: int, ctx_size: int) -> None:
    """Compare a model's calls with and without huge pages."""
    options = LoadOptions(n_ctx=ctx_size)
    others = [
        Setting("--no-huge-pages", replace(options, huge_pages=False), same_bits=True),
        Setting("--no-mmap", replace(options, mmap=False), same_bits=True),
    ]
    with load(model, options) as loaded:
        found = otherwise(loaded.target, others, loaded.otherwise, repeats)
    for other in found:
        for depth, pairs in other.seconds.items():
            now, then = pairs[1]
            print(
                f"{other.setting.flags:16} behind {depth:5} tokens: "
                f"{then * 1e3:7.2f} ms a token instead of {now * 1e3:7.2f}"
            )
    print(
        json.dumps(
            {
                "model": model.stem,
                "cpu": cpu_name(),
                "huge_pages": huge_pages.setting(),
                "others": [other.fields() for other in found],
            }
        )
    )


if __name__ == "__main__":
    main()
