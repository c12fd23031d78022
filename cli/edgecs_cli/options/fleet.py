"""The option --ray of commands whose work can be spread over machines."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from edgecs_cli.options.kinds import WrongValue

F = TypeVar("F", bound=Callable[..., Any])

_HOST = re.compile(r"(?:ray://)?(?:\[[0-9a-f:.]+\]|[\w.-]+):(\d{1,5})", re.A | re.I)
_PORTS = 1 << 16


class RayAddress(click.ParamType[str]):
    """auto, local, HOST:PORT or ray://HOST:PORT."""

    name = "address"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Checks an address."""
        text = str(value)
        found = _HOST.fullmatch(text)
        if text in ("auto", "local") or (found and 0 < int(found[1]) < _PORTS):
            return text
        wanted = "auto, local, HOST:PORT or ray://HOST:PORT"
        raise WrongValue(wanted, value, param, ctx)


def ray_option(work: str) -> Callable[[F], F]:
    """The option --ray. work: what workers do, as in `write the answers`."""
    return click.option(
        "--ray",
        metavar="ADDRESS",
        type=RayAddress(),
        help=f"Let the workers of a Ray cluster {work}: auto, local (this machine "
        "alone), HOST:PORT or ray://HOST:PORT. Anyone who can reach it can run "
        "code on it (docs/security.md).",
    )
