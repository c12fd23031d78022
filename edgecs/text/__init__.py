"""Tokens as text, and messages as the prompt text that a model was trained on."""
