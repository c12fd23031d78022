"""onnxruntime-genai, which cannot run the model: its row says so.

It loads folders of ONNX that its own builder makes. In 0.18 the builder reads a GGUF
only with weights of 16 or 32 bits, beside the folder of the original model; converting
would measure other weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load(hello: dict[str, Any]) -> None:
    """Raises RuntimeError."""
    raise RuntimeError(
        f"onnxruntime-genai cannot load {Path(hello['model']).name}: it takes folders "
        "made by its model builder, which reads no quantised GGUF"
    )
