"""Model references in options and arguments, and their shell completion."""

from __future__ import annotations

from importlib import resources
from typing import Any

import click
from click.shell_completion import CompletionItem


class Reference(click.ParamType[str]):
    """A name, a path or user/repo, resolved later.

    drafters: also complete the names of drafters, and `none`.
    """

    name = "text"

    def __init__(self, *, drafters: bool = False) -> None:
        self._drafters = drafters

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Accepts any text."""
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names with this prefix, and files that the shell finds.

        Files come first: click's bash script drops the completions before them, so
        files are offered only if no name matches.
        """
        root = resources.files("edgecs_models")
        names = [
            entry.name.removesuffix(".toml")
            for entry in root.iterdir()
            if entry.name.endswith(".toml")
        ]
        if self._drafters:
            folders = root.joinpath("drafters").iterdir()
            names += ["none", *(entry.name for entry in folders if entry.is_dir())]
        known = [CompletionItem(n) for n in sorted(names) if n.startswith(incomplete)]
        return [CompletionItem(incomplete, type="file"), *known]
