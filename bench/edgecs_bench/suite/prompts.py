"""Prompts from JSONL files: Spec-Bench's format, HumanEval's, or plain text."""

from __future__ import annotations

import gzip
import io
import json
import sys
import zlib
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import click

from edgecs.core.reading import read_given

GROUP = "mt_bench"
MT_BENCH = (
    "writing",
    "roleplay",
    "reasoning",
    "math",
    "coding",
    "extraction",
    "stem",
    "humanities",
)


class Exam(NamedTuple):
    """How code that answers a prompt is tested, in HumanEval's terms."""

    test: str  # defines check(candidate)
    entry_point: str


_LARGEST = 1 << 28  # bytes of prompts, unpacked


class Prompt(NamedTuple):
    """The text of a prompt, and its category."""

    id: str
    category: str
    text: str
    exam: Exam | None = None


def read_prompts(
    files: Sequence[Path], categories: Sequence[str], per_category: int
) -> list[Prompt]:
    """The first few prompts of every category, in the order of the files.

    A line is a JSON object with `turns` (the first is used), `prompt` or `text`, and
    `category`, which defaults to the name of the file. Files whose name ends in .gz are
    compressed. categories: only these; empty: all. Raises click.UsageError.
    """
    found: dict[str, list[Prompt]] = {name: [] for name in categories}
    for file in files:
        for number, line in enumerate(_lines(file), 1):
            prompt = _prompt(line, file, number)
            if categories and prompt.category not in categories:
                continue
            few = found.setdefault(prompt.category, [])
            if len(few) < per_category:
                few.append(prompt)
    missing = [name for name, few in found.items() if not few]
    if missing or not found:
        raise click.UsageError(f"no prompts of category {', '.join(missing) or 'any'}")
    return [prompt for few in found.values() for prompt in few]


def choose(
    files: Sequence[Path],
    categories: Sequence[str],
    per_category: int,
    grouped: bool,
    counts: Mapping[str, int] = MappingProxyType({}),
) -> list[Prompt]:
    """The first few prompts of every category, in the order of the files.

    counts: numbers for single categories. grouped: the eight categories of MT-bench
    become one, with prompts of each in turn. Raises click.UsageError.
    """
    groups: dict[str, dict[str, list[Prompt]]] = {}
    for prompt in read_prompts(files, (), sys.maxsize):
        kind = prompt.category
        name = GROUP if grouped and kind in MT_BENCH else kind
        few = groups.setdefault(name, {}).setdefault(kind, [])
        few.append(prompt._replace(category=name))
    named = [*categories, *counts]
    if missing := [name for name in named if name not in groups]:
        raise click.UsageError(f"no prompts of category {', '.join(missing)}")
    found: list[Prompt] = []
    for name in dict.fromkeys(categories or groups):
        turns = chain.from_iterable(zip_longest(*groups[name].values()))
        count = counts.get(name, per_category)
        found += [prompt for prompt in turns if prompt][:count]
    return found


def _lines(file: Path) -> list[str]:
    try:
        data = read_given(file, _LARGEST)
        if file.suffix == ".gz":
            with gzip.open(io.BytesIO(data)) as packed:
                data = packed.read(_LARGEST + 1)
            if len(data) > _LARGEST:
                raise OSError(f"it unpacks to more than {_LARGEST >> 20} MiB")
        # Not `splitlines`: texts may contain line separators that JSON does not escape.
        return [line for line in data.decode("utf-8").split("\n") if line.strip()]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file} cannot be read: {error}") from error


def _prompt(line: str, file: Path, number: int) -> Prompt:
    try:
        fields = json.loads(line)
        turns = fields.get("turns") or [fields.get("prompt") or fields["text"]]
        names = (fields.get(key) for key in ("question_id", "task_id", "id"))
        name = next((name for name in names if name is not None), number)
        category = fields.get("category", file.name.partition(".")[0])
        exam = None
        if "test" in fields and "entry_point" in fields:
            exam = Exam(str(fields["test"]), str(fields["entry_point"]))
        return Prompt(str(name), str(category), str(turns[0]), exam)
    except (
        ValueError,
        RecursionError,
        KeyError,
        AttributeError,
        IndexError,
        TypeError,
    ) as error:
        raise click.UsageError(
            f"line {number} of {file} is not a prompt: it needs turns, prompt or text"
        ) from error
