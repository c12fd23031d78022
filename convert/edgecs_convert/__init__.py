"""Conversion to GGUF and ONNX."""

import edgecs.backends  # noqa: F401  keeps the exporters' engines from calling home
