"""The compiled kernels, for tests: compiled beside the sources if nobody did."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from edgecs.engines.llama.kernels import include_folder
from edgecs.native import build


@functools.cache
def library() -> Path:
    """Tests run once more with another one, see test_own_sets.py."""
    other = os.environ.get("EDGECS_TESTED_LIBRARY")
    return (
        Path(other) if other else build.compile_library(include_folder(), build.SOURCES)
    )
