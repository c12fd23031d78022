"""ONNX Runtime for small drafters: decoders, and heads on hidden states of a target."""
