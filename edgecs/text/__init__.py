"""Tokens as text, and messages as prompt text."""
