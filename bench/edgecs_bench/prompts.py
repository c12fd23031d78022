"""Prompts from JSONL files: Spec-Bench's format, HumanEval's, or plain text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click


class Prompt(NamedTuple):
    """What a user would type, and the kind of task it is."""

    id: str
    category: str
    text: str


def read_prompts(
    files: Sequence[Path], categories: Sequence[str], per_category: int
) -> list[Prompt]:
    """The first few prompts of every category, in the order of the files.

    A line is a JSON object with `turns` (the first is taken), `prompt` or `text`; and
    `category`, without which the name of the file is one. categories: only these; all
    of them if there are none. Raises click.UsageError.
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


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file} cannot be read: {error}") from error


def _prompt(line: str, file: Path, number: int) -> Prompt:
    try:
        fields = json.loads(line)
        turns = fields.get("turns") or [fields.get("prompt") or fields["text"]]
        name = fields.get("question_id", fields.get("task_id", number))
        return Prompt(str(name), fields.get("category", file.stem), str(turns[0]))
    except (ValueError, KeyError, AttributeError, IndexError) as error:
        raise click.UsageError(
            f"line {number} of {file} is no prompt: it needs turns, prompt or text"
        ) from error
