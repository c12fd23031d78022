"""The prior log-odds of every target, fitted to traces of other models."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any


@cache
def packaged() -> dict[str, Any]:
    """The packaged prior, written by `python -m edgecs_bench.prior`.

    copied, stated: log-odds by bucket. paths: path probabilities of Max-Gram's
    proposals at positions of many texts.
    """
    file = resources.files("edgecs.drafters").joinpath("prior.json")
    return dict(json.loads(file.read_text(encoding="utf-8")))
