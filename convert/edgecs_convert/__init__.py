"""Conversion to GGUF and ONNX."""

import edgecs.engines  # noqa: F401  disables the telemetry of engines
