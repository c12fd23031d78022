"""Conversion to GGUF and ONNX."""

import edgecs.engines  # noqa: F401  keeps the exporters' engines from calling home
