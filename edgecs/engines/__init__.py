"""The engines. llama_cpp and onnxruntime are imported here and nowhere else.

ONNX Runtime 1.31 writes a device id and a queue of events under the user's cache, and
sends them, unless its variable is set before it is imported.
"""

import os

NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Environment variables that keep engines and their companions from calling home."""

os.environ.update(NO_TELEMETRY)
