"""Suites: sets of prompts that come with edgecs, or JSONL files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import click

from edgecs_bench.suite.prompts import Prompt, choose

_FOLDER = Path(__file__).parents[1] / "data" / "suites"
SUITES = {
    "quick": _FOLDER / "quick.jsonl",
    "spec-bench": _FOLDER / "spec_bench.jsonl.gz",
    "humaneval": _FOLDER / "humaneval.jsonl.gz",
}


class Suite(NamedTuple):
    """Prompts and their sources."""

    names: list[str]
    prompts: list[Prompt]

    @property
    def sha256(self) -> str:
        """The hash of the prompts in their order."""
        asked = [[p.id, p.category, p.text] for p in self.prompts]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def suite(
    names: Sequence[str],
    categories: Sequence[str] = (),
    per_category: int = 5,
    grouped: bool = True,
    counts: Mapping[str, int] = MappingProxyType({}),
) -> Suite:
    """The first few prompts of every category of some suites.

    names: of SUITES, or paths of JSONL files. See `prompts.choose`. Raises
    click.UsageError.
    """
    files = [SUITES.get(name, Path(name)) for name in names]
    for name, file in zip(names, files, strict=True):
        if name not in SUITES and not file.exists():
            known = ", ".join(SUITES)
            raise click.UsageError(
                f"no suite or file is named {name!r}: give one of {known}, or the "
                "path of a JSONL file"
            )
    prompts = choose(files, categories, per_category, grouped, counts)
    each = {(prompt.category, prompt.id): prompt for prompt in prompts}
    return Suite([Path(name).name for name in names], [*each.values()])
