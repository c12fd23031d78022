"""Conversion of targets: Hugging Face checkpoints to GGUF, and GGUFs to other types."""
