"""Prompts, and checks of the answers."""
