"""Hatch's build hook: a wheel with compiled kernels is for one platform.

A library that `make` has compiled next to the sources is included in the wheel. It is
used with a llama.cpp that has the same headers; otherwise edgecs compiles at first use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

_EDITABLE = "editable"


class KernelsHook(BuildHookInterface[Any]):
    """Adds the compiled library to the wheel, if there is one."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Prepare a build before files are collected; see Hatch's documentation."""
        native = Path(self.root) / "edgecs" / "native"
        libraries = sorted(native.glob("edgecs-*.so"))
        if version == _EDITABLE or not libraries:
            return
        build_data["pure_python"] = False
        # The glibc of this machine is the oldest one that is known to work.
        tags = sorted(platform_tags(), key=lambda tag: not tag.startswith("manylinux"))
        build_data["tag"] = f"py3-none-{tags[0]}"
        build_data["artifacts"] += [f"edgecs/native/{file.name}" for file in libraries]
