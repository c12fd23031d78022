"""The engines. llama_cpp and onnxruntime are imported only in this package.

ONNX Runtime 1.31 writes a device id and a queue of events to the user's cache, and
sends them, unless its variable is set before the import.
"""

import os

NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Environment variables that disable telemetry in engines and related packages."""

os.environ.update(NO_TELEMETRY)
