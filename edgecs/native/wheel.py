"""Hatch's build hook: a wheel with compiled kernels is for one platform.

A library that `make` has compiled beside the sources goes into the wheel. It serves
where llama.cpp has the same headers; elsewhere edgecs compiles at first use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

_EDITABLE = "editable"


class KernelsHook(BuildHookInterface[Any]):
    """Adds the library, if there is one."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before files are collected; see Hatch's documentation."""
        native = Path(self.root) / "edgecs" / "native"
        libraries = sorted(native.glob("edgecs-*.so"))
        if version == _EDITABLE or not libraries:
            return
        build_data["pure_python"] = False
        # The glibc of this machine is the oldest one that is sure to serve.
        tags = sorted(platform_tags(), key=lambda tag: not tag.startswith("manylinux"))
        build_data["tag"] = f"py3-none-{tags[0]}"
        build_data["artifacts"] += [f"edgecs/native/{file.name}" for file in libraries]
