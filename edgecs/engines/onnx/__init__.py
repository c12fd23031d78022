"""ONNX Runtime for small drafters: decoders, and heads on the target's states."""
