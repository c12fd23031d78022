"""The kinds of heads that have a file of their own."""

from __future__ import annotations

from edgecs.engines.llama.heads.dflash import DFlash
from edgecs.engines.llama.heads.eagle3 import Eagle3

HEAD_FILES: dict[str, type[Eagle3] | type[DFlash]] = {
    "eagle3": Eagle3,
    "dflash": DFlash,
}
"""By architecture; others of `model.HEADS` are not run yet."""
