"""Targets as GGUF: from Hugging Face checkpoints, and in other types."""
