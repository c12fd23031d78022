"""onnxruntime-genai, which cannot run the model; its row is an error.

It loads ONNX folders made by its own builder. In 0.18 the builder reads only GGUFs with
16 or 32-bit weights, next to the folder of the original model; a conversion would
measure other weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load(hello: dict[str, Any]) -> None:
    """Raises RuntimeError."""
    raise RuntimeError(
        f"onnxruntime-genai cannot load {Path(hello['model']).name}: it loads folders "
        "made by its model builder, which does not read quantised GGUFs"
    )
