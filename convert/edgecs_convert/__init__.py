"""Conversion to GGUF and ONNX; to come."""
