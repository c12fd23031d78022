"""Drafters as ONNX graphs."""
